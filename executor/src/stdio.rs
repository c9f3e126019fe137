//! What a step writes: read from its pipes as it comes, never cut.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};

use crate::cancel::Cancel;

/// Which stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Takes what a step writes.
pub trait LogSink: Sync {
    /// Some bytes, not necessarily whole lines.
    fn write(&self, stream: Stream, data: &[u8]);
}

/// The reading ends of a step's pipes.
pub(crate) struct Pipes {
    pub(crate) out: OwnedFd,
    pub(crate) err: OwnedFd,
}

/// Hands everything to `log` until both streams end. `on_cancel` is called once if somebody asks
/// to stop; reading goes on until the streams end.
pub(crate) fn drain(
    pipes: &Pipes,
    log: &dyn LogSink,
    cancel: &Cancel,
    mut on_cancel: impl FnMut(),
) -> io::Result<()> {
    let mut open = [Some((&pipes.out, Stream::Out)), Some((&pipes.err, Stream::Err))];
    let mut buffer = vec![0; 64 << 10];
    let mut asked = false;
    while open.iter().any(Option::is_some) {
        let mut waiting: Vec<PollFd<'_>> =
            open.iter().flatten().map(|(fd, _)| PollFd::new(*fd, PollFlags::IN)).collect();
        if !asked {
            waiting.push(PollFd::from_borrowed_fd(cancel.event(), PollFlags::IN));
        }
        match poll(&mut waiting, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        if !asked && cancel.is_cancelled() {
            asked = true;
            on_cancel();
        }
        let mut ready = waiting.iter().map(|fd| !fd.revents().is_empty());
        for slot in &mut open {
            let Some((fd, stream)) = *slot else { continue };
            if !ready.next().unwrap_or(false) {
                continue;
            }
            match rustix::io::read(fd.as_fd(), &mut buffer) {
                Ok(0) => *slot = None,
                Ok(length) => log.write(stream, &buffer[..length]),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
