//! Loading a filter without `no_new_privs`.

use std::io;

/// `seccomp(SECCOMP_SET_MODE_FILTER)`.
///
/// # Errors
/// Without CAP_SYS_ADMIN; a kernel without seccomp.
pub(crate) fn load(program: &[libc::sock_filter]) -> io::Result<()> {
    const SECCOMP_SET_MODE_FILTER: libc::c_ulong = 1;
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: `filter` points to `len` instructions that live until the call returns; the kernel
    // copies them and does not write through the pointer.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
