//! System calls that a step may not make. The list answers what Docker's default profile leaves
//! out of its list for a process with the default capabilities (moby/profiles, seccomp); foreign
//! architectures (i386, x32) are not let in at all.

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Refused with EPERM, whatever the arguments.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[libc::c_long] = &[
    libc::SYS__sysctl,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_sysfs,
    libc::SYS_uselib,
    libc::SYS_ustat,
];

#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[libc::c_long] = &[];

/// Flags of `clone(2)` that make namespaces.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// The compiled filters: what is refused, and `clone3`, whose flags a filter cannot see, as a call
/// that the kernel does not have (C libraries fall back to `clone`).
pub(crate) struct Filters {
    refuse: BpfProgram,
    absent: BpfProgram,
}

/// The filters, compiled once a process; `None` where this architecture has none.
pub(crate) fn filters() -> io::Result<Option<&'static Filters>> {
    static COMPILED: OnceLock<Result<Option<Filters>, String>> = OnceLock::new();
    let compiled = COMPILED.get_or_init(|| compile().map_err(|error| error.to_string()));
    compiled.as_ref().map(Option::as_ref).map_err(|why| io::Error::other(why.clone()))
}

fn compile() -> io::Result<Option<Filters>> {
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else { return Ok(None) };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for &call in REFUSED.iter().chain(REFUSED_HERE) {
        rules.insert(call, Vec::new());
    }
    let mut namespaces = Vec::new();
    for bit in (0..64).map(|n| 1u64 << n).filter(|bit| NAMESPACES & bit != 0) {
        let condition =
            SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bit), bit);
        let rule = condition.and_then(|condition| SeccompRule::new(vec![condition]));
        namespaces.push(rule.map_err(io::Error::other)?);
    }
    rules.insert(libc::SYS_clone, namespaces);
    let eperm = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let absent = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let enosys = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    Ok(Some(Filters {
        refuse: program(rules, eperm, arch)?,
        absent: program(absent, enosys, arch)?,
    }))
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    action: SeccompAction,
    arch: TargetArch,
) -> io::Result<BpfProgram> {
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch);
    filter.and_then(BpfProgram::try_from).map_err(io::Error::other)
}

impl Filters {
    /// Puts the filters on this process and its children, for ever. Needs CAP_SYS_ADMIN: programs
    /// with the setuid bit must keep working, so there is no `no_new_privs`.
    pub(crate) fn load(&self) -> io::Result<()> {
        for program in [&self.absent, &self.refuse] {
            crate::sys::seccomp::load(program)?;
        }
        Ok(())
    }
}
