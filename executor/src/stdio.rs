//! What a step writes: read from its pipes as it comes, never cut.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::cancel::Cancel;
use crate::spec::Streams;
use crate::terminal::{self, Terminal};

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

/// The builder's ends of a step's streams.
pub(crate) struct Pipes {
    pub(crate) out: OwnedFd,
    /// None where both streams are one terminal.
    pub(crate) err: Option<OwnedFd>,
}

/// The step's ends.
pub(crate) struct Ends {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Makes the streams of a step.
pub(crate) fn open(streams: Streams) -> io::Result<(Ends, Pipes)> {
    if streams == Streams::Terminal {
        let Terminal { master, slave } = terminal::open()?;
        let (stdin, stdout) = (slave.try_clone()?, slave.try_clone()?);
        return Ok((Ends { stdin, stdout, stderr: slave }, Pipes { out: master, err: None }));
    }
    let stdin = if streams == Streams::Input {
        io::stdin().as_fd().try_clone_to_owned()?
    } else {
        rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?
    };
    let (out, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (err, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((Ends { stdin, stdout, stderr }, Pipes { out, err: Some(err) }))
}

/// Hands everything to `log` until both streams end. When somebody asks to stop, `send` is called with
/// SIGTERM, which the step passes on to its processes, and after `grace` with SIGKILL; reading goes on
/// until the streams end.
pub(crate) fn drain(
    pipes: &Pipes,
    log: &dyn LogSink,
    cancel: &Cancel,
    grace: Duration,
    mut send: impl FnMut(Signal),
) -> io::Result<()> {
    let err = pipes.err.as_ref().map(|err| (err, Stream::Err));
    let mut open = [Some((&pipes.out, Stream::Out)), err];
    let mut buffer = vec![0; 64 << 10];
    let mut stopping = Stopping::No;
    while open.iter().any(Option::is_some) {
        let mut waiting: Vec<PollFd<'_>> =
            open.iter().flatten().map(|(fd, _)| PollFd::new(*fd, PollFlags::IN)).collect();
        if matches!(stopping, Stopping::No) {
            waiting.push(PollFd::from_borrowed_fd(cancel.event(), PollFlags::IN));
        }
        let timeout = stopping.rest(grace).and_then(|rest| Timespec::try_from(rest).ok());
        match poll(&mut waiting, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        stopping = stopping.next(cancel, grace, &mut send);
        let mut ready = waiting.iter().map(|fd| !fd.revents().is_empty());
        for slot in &mut open {
            let Some((fd, stream)) = *slot else { continue };
            if !ready.next().unwrap_or(false) {
                continue;
            }
            match rustix::io::read(fd.as_fd(), &mut buffer) {
                // EIO: nobody has the other end of the terminal any more (tty_ioctl(4)).
                Ok(0) | Err(rustix::io::Errno::IO) => *slot = None,
                Ok(length) => log.write(stream, &buffer[..length]),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// How far stopping a step is.
#[derive(Clone, Copy)]
enum Stopping {
    No,
    Asked(Instant),
    Killed,
}

impl Stopping {
    /// How long until SIGKILL.
    fn rest(self, grace: Duration) -> Option<Duration> {
        match self {
            Self::Asked(when) => Some(grace.saturating_sub(when.elapsed())),
            Self::No | Self::Killed => None,
        }
    }

    fn next(self, cancel: &Cancel, grace: Duration, send: &mut impl FnMut(Signal)) -> Self {
        match self {
            Self::No if cancel.is_cancelled() => {
                send(Signal::SIGTERM);
                Self::Asked(Instant::now())
            }
            Self::Asked(when) if when.elapsed() >= grace => {
                send(Signal::SIGKILL);
                Self::Killed
            }
            other => other,
        }
    }
}
