//! Owners of files on disk where this process has not all ids: in a user namespace with few of them
//! a layer's files belong to whom they can, and the layer's tree says to whom they should.

use std::io;
use std::sync::OnceLock;

use rustix::io::Errno;

/// Takes it as done where this process lacks the id or the right.
///
/// # Errors
/// The one given, where this process has all ids.
pub(crate) fn as_far_as_possible(result: io::Result<()>) -> io::Result<()> {
    let lacking = [Errno::INVAL, Errno::PERM, Errno::OVERFLOW];
    match result {
        Err(error) if lacking.iter().any(|e| error.raw_os_error() == Some(e.raw_os_error())) => {
            if is_unrestricted() {
                Err(error)
            } else {
                Ok(())
            }
        }
        result => result,
    }
}

fn is_unrestricted() -> bool {
    static ALL: OnceLock<bool> = OnceLock::new();
    *ALL.get_or_init(|| {
        if !rustix::process::geteuid().is_root() {
            return false;
        }
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        map.split_whitespace().eq(["0", "0", "4294967295"]) && makes_devices(&status)
    })
}

/// Whether /proc/self/status has CAP_MKNOD (capabilities(7), number 27) among those in effect: root of a
/// container often has not.
fn makes_devices(status: &str) -> bool {
    const MKNOD: u64 = 1 << 27;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    set.is_none_or(|set| set & MKNOD != 0)
}

#[cfg(test)]
mod tests {
    use super::makes_devices;

    #[test]
    fn capabilities_are_read() {
        assert!(makes_devices("Name:\tkiln\nCapEff:\t000001ffffffffff\n"));
        assert!(!makes_devices("CapEff:\t00000000800405fb\n"));
        assert!(makes_devices(""));
    }
}
