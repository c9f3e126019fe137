//! Processes: fork, exec, signals, descriptors, the session keyring.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sched::CloneFlags;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
};
use nix::unistd::{ForkResult, Pid};

/// Which side of a fork this is.
pub(crate) enum Side {
    /// The caller, with the new process.
    Parent(Pid),
    /// The new process: single-threaded, it must end with [`exit`] or an exec.
    Child,
}

/// `fork(2)`.
///
/// # Errors
/// Too many processes, too little memory.
pub(crate) fn fork() -> io::Result<Side> {
    // SAFETY: this is glibc's fork, which makes malloc usable in the child of a threaded process
    // (its atfork handlers take and release malloc's locks). The child calls nothing that needs
    // another lock of this program: no stdio, no logging, no thread pool; and it leaves by `exit`
    // below or by exec, so no destructor of the parent runs twice.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Side::Parent(child)),
        ForkResult::Child => Ok(Side::Child),
    }
}

/// Bytes of the stack that a borrowing process has; pages that it does not touch cost nothing.
const STACK: usize = 1 << 20;

/// A process that begins with `child` and borrows this one's memory, which waits until that executes a program or
/// ends: clone(2), `CLONE_VM | CLONE_VFORK`. Nothing is copied, so that it starts and ends several times faster than
/// a fork. Descriptors, working directory, signal actions and credentials are its own; `child`'s result is its status.
///
/// For single-threaded (forked) processes.
///
/// # Errors
/// Too many processes, too little memory.
pub(crate) fn fork_borrowing(mut child: impl FnMut() -> i32) -> io::Result<Pid> {
    let mut stack = vec![0; STACK];
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    let begin = Box::new(|| -> isize { exit(child()) });
    // SAFETY: this process waits until the memory is its own again, so that `stack` and what `child` borrows outlive
    // their use, and nobody else runs in this memory meanwhile: there is one thread. The child leaves by `exit` or by
    // exec, so no destructor runs twice. glibc is told nothing, so its record of the thread's number is the caller's in
    // the child; `child` uses none of what reads it (raise, robust and error-checking mutexes).
    let pid = unsafe { nix::sched::clone(begin, &mut stack, flags, Some(libc::SIGCHLD)) }?;
    Ok(pid)
}

/// Ends a forked process at once, without destructors or exit handlers.
pub(crate) fn exit(status: i32) -> ! {
    // SAFETY: _exit(2) takes any number and does not return.
    unsafe { libc::_exit(status) }
}

/// Default actions for all signals, none blocked: nothing of the caller's is inherited.
pub(crate) fn reset_signals() -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action runs no code of this program.
        unsafe { sigaction(signal, &default) }?;
    }
    reset_library_signals();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// glibc keeps signals 32 and 33 to itself: its `sigaction` refuses them, but a caller's `posix_spawn` may
/// leave them ignored.
fn reset_library_signals() {
    /// `struct sigaction` of the kernel, at least as large as on any processor.
    const DEFAULT: [u64; 4] = [0; 4];
    const SIGNAL_SET_BYTES: usize = 8;
    for signal in [32, 33] {
        // SAFETY: zeros are the default action without flags, restorer or mask; the kernel reads no
        // more than they are, and writes nothing.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                DEFAULT.as_ptr(),
                std::ptr::null::<u64>(),
                SIGNAL_SET_BYTES,
            )
        };
    }
}

/// Closes every descriptor but 0, 1, 2 and `keep`.
pub(crate) fn close_others(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|&fd| u32::try_from(fd).ok()).collect();
    keep.sort_unstable();
    let mut from = 3;
    for fd in keep.into_iter().filter(|&fd| fd >= 3) {
        if from < fd {
            close_range(from, fd - 1)?;
        }
        from = fd + 1;
    }
    close_range(from, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the caller is a freshly forked process; descriptors in the range belong to objects
    // of the parent's copy whose destructors never run here (the process ends by _exit or exec).
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::ENOSYS) {
        return Err(error);
    }
    // Linux before 5.9: one by one, up to the soft limit.
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?.0;
    for fd in first..=last.min(u32::try_from(limit).unwrap_or(u32::MAX)) {
        // SAFETY: as above; closing a number that is not open does nothing.
        unsafe { libc::close(RawFd::try_from(fd).unwrap_or(RawFd::MAX)) };
    }
    Ok(())
}

/// `dup2(2)`: the copy stays open across an exec.
pub(crate) fn duplicate_to(fd: &OwnedFd, number: RawFd) -> io::Result<()> {
    // SAFETY: the caller is a forked process about to exec; what `number` was belongs to objects of
    // the parent's copy whose destructors never run here.
    let result = unsafe { libc::dup2(fd.as_raw_fd(), number) };
    if result == number { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether a filter of system calls is on this process: prctl(2), PR_GET_SECCOMP.
pub(crate) fn has_filter() -> bool {
    // SAFETY: the call takes no pointers.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) > 0 }
}

/// Joins a new, empty session keyring, so that the caller's keys are out of reach (keyrings(7)).
pub(crate) fn new_session_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring; the call touches no memory of ours. A
    // kernel without keyrings has none to hide, so the result does not matter.
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
}

/// `execve(2)`; returns only on failure.
pub(crate) fn exec(program: &CString, args: &[CString], env: &[CString]) -> io::Error {
    match nix::unistd::execve(program, args, env) {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}
