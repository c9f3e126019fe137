//! A terminal for a command that talks to a person (`kiln run -t`): a new pair, one end for the command, the
//! other carried to and from the caller's terminal. Builds have none.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

/// How often the size of the caller's window is looked at.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Both ends of a new terminal.
pub(crate) struct Terminal {
    /// The end that the builder reads and writes.
    pub(crate) master: OwnedFd,
    /// The command's end.
    pub(crate) slave: OwnedFd,
}

/// Makes a terminal.
pub(crate) fn open() -> io::Result<Terminal> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    Ok(Terminal { master, slave })
}

/// Carries what the caller types, and the size of its window, for as long as it lives. The caller's
/// terminal hands every key on meanwhile.
pub(crate) struct Typing {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    before: Option<Termios>,
}

impl Typing {
    /// Begins. Where standard input is no terminal, bytes are carried as they are.
    pub(crate) fn begin(master: &OwnedFd) -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        }
        let ended = Arc::new(AtomicBool::new(false));
        let (seen, master) = (Arc::clone(&ended), master.try_clone()?);
        let thread = std::thread::Builder::new()
            .name("typing".to_owned())
            .spawn(move || carry(&master, &seen))?;
        Ok(Self { ended, thread: Some(thread), before })
    }
}

impl Drop for Typing {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it has been told by the panic itself.
            let _ended = thread.join();
        }
        if let Some(before) = &self.before {
            // The terminal may be gone; there is nothing left to set then.
            let _gone = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

fn carry(master: &OwnedFd, ended: &AtomicBool) {
    let stdin = io::stdin();
    let mut buffer = [0; 4096];
    let mut open = true;
    while !ended.load(Ordering::Relaxed) {
        if let Ok(size) = tcgetwinsize(&stdin) {
            let _gone = tcsetwinsize(master, size);
        }
        let mut waiting = [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)];
        let waiting = if open { &mut waiting[..] } else { &mut [] };
        if !matches!(poll(waiting, Some(&LOOK)), Ok(1..)) {
            continue;
        }
        match rustix::io::read(&stdin, &mut buffer) {
            Ok(0) => {
                // End of file as a person types it.
                open = false;
                let _gone = rustix::io::write(master, b"\x04");
            }
            Ok(length) if send(master, &buffer[..length]).is_ok() => {}
            Ok(_) | Err(_) => return,
        }
    }
}

fn send(master: &OwnedFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::write(master, bytes)?;
        bytes = &bytes[written..];
    }
    Ok(())
}
