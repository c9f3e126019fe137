//! What a step may ask of the kernel: the calls that Docker's default profile allows a process with the
//! default capabilities (moby/profiles, `seccomp/default.json`, June 2026), less what security.md 2.1
//! takes away. Names that an ABI does not have are left out where it is compiled.

use super::{Action, Condition, Op, Profile, Rule};

/// Allowed whatever the arguments.
const ALLOWED: &str = "\
    _llseek _newselect accept accept4 access adjtimex alarm arch_prctl arm_fadvise64_64 \
    arm_sync_file_range bind breakpoint brk cacheflush cachestat capget capset chdir chmod chown \
    chown32 chroot clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect \
    copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old \
    epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit \
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod \
    fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock \
    fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate \
    ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat \
    get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid \
    geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid \
    getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage \
    getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat \
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy \
    io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set \
    ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 \
    lgetxattr link linkat listen listmount listxattr listxattrat llistxattr lremovexattr lseek \
    lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore \
    mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 modify_ldt mprotect mq_getsetattr \
    mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 \
    mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap \
    name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal \
    pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv \
    preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 \
    ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom \
    recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat \
    renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo \
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo \
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity \
    sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop \
    semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list \
    set_thread_area set_tid_address set_tls setfsgid setfsgid32 setfsuid setfsuid32 setgid \
    setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid \
    setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid \
    setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 \
    sigprocmask sigreturn splice stat stat64 statfs statfs64 statmount statx symlink \
    symlinkat sync sync_file_range sync_file_range2 syncfs sysinfo tee tgkill time timer_create \
    timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 \
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill \
    truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat \
    utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

/// Calls that the profile refuses: named, so that they are known to be older than the list. (What is
/// newer is answered as by a kernel without it, and C libraries fall back.)
const REFUSED: &str = "\
    acct add_key bpf clock_settime clock_settime64 delete_module fanotify_init finit_module fsconfig \
    fsmount fsopen fspick get_mempolicy init_module io_uring_enter io_uring_register io_uring_setup \
    ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie lsm_get_self_attr \
    lsm_list_modules lsm_set_self_attr mbind mount mount_setattr move_mount move_pages nfsservctl \
    open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root process_madvise quotactl \
    quotactl_fd reboot request_key set_mempolicy set_mempolicy_home_node setdomainname sethostname \
    setns settimeofday stime swapoff swapon syslog umount umount2 unshare userfaultfd vhangup";

/// Socket families: UNIX, INET, INET6, NETLINK, PACKET (address_families(7)). Docker's profile only
/// names what is forbidden; new families are where kernels have their holes (security.md, V25).
const FAMILIES: [u64; 5] = [1, 2, 10, 16, 17];

/// Execution domains that programs ask for (personality(2)): PER_LINUX, PER_LINUX32, both with
/// UNAME26, and the question which one there is.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Flags of clone(2) that make namespaces.
const NAMESPACES: u64 = 0x7e02_0000;

/// Of a file's mode: the bits of its type, and those of character devices (inode(7)). The device 0:0 is a deletion for
/// whoever puts layers together; overlay lets nobody make one, fuse-overlayfs does.
const FILE_TYPE: u64 = 0o170_000;
const CHARACTER_DEVICE: u64 = 0o020_000;

/// The profile. `multiplexed_sockets`: programs of 32-bit x86 may use `socketcall`, whose family a filter
/// cannot see.
pub(super) fn default(multiplexed_sockets: bool) -> Profile {
    let errno = |number: i32| Action::Errno(u16::try_from(number).unwrap_or(1));
    let plain = |names: &str, action| Rule {
        names: names.split_whitespace().map(str::to_owned).collect(),
        action,
        conditions: Vec::new(),
    };
    let when = |names: &str, op, value| Rule {
        conditions: vec![Condition { argument: 0, op, value }],
        ..plain(names, Action::Allow)
    };
    // The kernel takes an int, and callers may leave anything in the other half of the register.
    let int = Op::Masked(u64::from(u32::MAX));
    let mut rules = vec![
        plain(ALLOWED, Action::Allow),
        plain(REFUSED, errno(libc::EPERM)),
        plain("clone3", errno(libc::ENOSYS)),
        when("clone", Op::Masked(NAMESPACES), 0),
        plain("clone personality", errno(libc::EPERM)),
        // Pairs of a family load its module too, though few families have them.
        plain("socket socketpair", errno(libc::EAFNOSUPPORT)),
        plain("socketcall", if multiplexed_sockets { Action::Allow } else { errno(libc::ENOSYS) }),
    ];
    rules.extend(FAMILIES.map(|family| when("socket socketpair", int, family)));
    rules.extend(PERSONALITIES.map(|one| when("personality", int, one)));
    rules.extend([("mknod", 1), ("mknodat", 2)].map(|(name, mode)| Rule {
        conditions: vec![
            Condition { argument: mode, op: Op::Masked(FILE_TYPE), value: CHARACTER_DEVICE },
            Condition { argument: mode + 1, op: int, value: 0 },
        ],
        ..plain(name, errno(libc::EPERM))
    }));
    Profile { default: errno(libc::EPERM), rules, narrow: true }
}
