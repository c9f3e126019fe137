//! Network interfaces by ioctl (netdevice(7)).

use std::io;
use std::os::fd::AsRawFd;

/// Sets an interface of this network namespace up.
///
/// # Errors
/// No such interface, no CAP_NET_ADMIN here.
pub(crate) fn interface_up(name: &str) -> io::Result<()> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (slot, byte) in ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *slot = libc::c_char::from_ne_bytes([byte]);
    }
    let up = libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    let request =
        libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: up } };
    // SAFETY: SIOCSIFFLAGS reads a `struct ifreq` with a name that ends in zero and the flags;
    // `request` is one, lives until the call returns, and is not written to.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
