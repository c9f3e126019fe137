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
            if has_all_ids() {
                Err(error)
            } else {
                Ok(())
            }
        }
        result => result,
    }
}

fn has_all_ids() -> bool {
    static ALL: OnceLock<bool> = OnceLock::new();
    *ALL.get_or_init(|| {
        if !rustix::process::geteuid().is_root() {
            return false;
        }
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        map.split_whitespace().eq(["0", "0", "4294967295"])
    })
}
