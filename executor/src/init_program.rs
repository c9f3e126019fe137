//! The program that is pid 1 of a step (`init/init.rs`), in a sealed file that only exists in memory: the
//! step can neither see where it came from nor change it (security.md, V14).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

use nix::unistd::Pid;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// The program, as `build.rs` made it.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

/// The descriptor on which it expects the report's pipe.
const REPORT: i32 = 3;

/// The sealed file; made once a process.
pub(crate) fn file() -> io::Result<&'static OwnedFd> {
    static FILE: OnceLock<Result<OwnedFd, String>> = OnceLock::new();
    let made = FILE.get_or_init(|| make().map_err(|error| error.to_string()));
    made.as_ref().map_err(|why| io::Error::other(format!("a program in memory: {why}")))
}

fn make() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match memfd_create("init", flags | MemfdFlags::EXEC) {
        // Linux before 6.3 has no such flag; every file of this kind may be executed there.
        Err(rustix::io::Errno::INVAL) => memfd_create("init", flags)?,
        Err(rustix::io::Errno::ACCESS) => {
            return Err(io::Error::other("refused; remedy: sysctl -w vm.memfd_noexec=1"));
        }
        made => made?,
    };
    let mut rest = PROGRAM;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = &rest[written..];
    }
    fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    // The report takes its number in the step's process; the program must not be what it replaces.
    Ok(rustix::io::fcntl_dupfd_cloexec(&file, REPORT + 1)?)
}

/// Becomes the program, which waits for `command`. Returns only on failure.
pub(crate) fn become_init(file: &OwnedFd, report: &OwnedFd, command: Pid) -> io::Error {
    let prepared = if report.as_raw_fd() == REPORT {
        rustix::io::fcntl_setfd(report, rustix::io::FdFlags::empty()).map_err(io::Error::from)
    } else {
        crate::sys::process::duplicate_to(report, REPORT)
    };
    if let Err(error) = prepared {
        return error;
    }
    let Ok(command) = CString::new(command.to_string()) else {
        return io::Error::from(io::ErrorKind::InvalidInput);
    };
    let nothing: [CString; 0] = [];
    match nix::unistd::fexecve(file, &[c"init".to_owned(), command], &nothing) {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;

    use super::{PROGRAM, REPORT, file};

    #[test]
    fn the_program_is_sealed() {
        let file = file().expect("made");
        assert!(file.as_raw_fd() > REPORT, "the report may take its number");
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut found = Vec::new();
        std::fs::File::open(&path).expect("open").read_to_end(&mut found).expect("read");
        assert_eq!(found, PROGRAM);
        assert!(std::fs::write(&path, b"x").is_err(), "nobody writes to it");
    }
}
