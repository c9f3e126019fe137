//! The socket of `RUN --mount=type=ssh`: while a step runs, what it says to the socket goes to the
//! caller's agent, through a filter that lets keys be listed and used, and nothing else
//! (draft-miller-ssh-agent). Nothing of it outlives the step.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Scope};
use std::time::Duration;

use nix::sys::socket::{self, shutdown};

use crate::build::agents::Agent;

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;

/// OpenSSH's `AGENT_MAX_LEN`, bytes of one message.
const FRAME_BYTES_MAX: usize = 256 * 1024;

/// How many conversations one socket has at once; further ones are hung up on.
const CONVERSATIONS_MAX: usize = 64;

/// A socket that is forwarded until this is dropped.
pub(crate) struct Forwarding {
    path: PathBuf,
    listener: Arc<UnixListener>,
    open: Arc<Mutex<Open>>,
    thread: Option<JoinHandle<()>>,
}

/// What has to be shut down for all threads to end.
#[derive(Default)]
struct Open {
    ended: bool,
    next: u64,
    conversations: BTreeMap<u64, [UnixStream; 2]>,
}

/// Where connections go.
struct Line {
    agent: PathBuf,
    raw: bool,
}

/// Makes the socket `folder/name` with this mode, user and group, and forwards it to the agent.
///
/// # Errors
/// The agent does not answer, the socket cannot be made.
pub(crate) fn forward(
    agent: &Agent,
    folder: &Path,
    name: &str,
    (mode, uid, gid): (u32, u32, u32),
) -> io::Result<Forwarding> {
    // A socket that nobody answers is told now, not by the step's program in its own words.
    drop(UnixStream::connect(&agent.socket)?);
    // The path of a socket has at most 107 bytes (unix(7)), the store's may be longer.
    let open_folder = File::open(folder)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}/{name}", open_folder.as_raw_fd()));
    let listener = Arc::new(UnixListener::bind(&short)?);
    let path = folder.join(name);
    chown(&path, Some(uid), Some(gid))?;
    std::fs::set_permissions(&path, Permissions::from_mode(mode & 0o777))?;
    let open = Arc::new(Mutex::new(Open::default()));
    let line = Line { agent: agent.socket.clone(), raw: agent.raw };
    let (ours, theirs) = (Arc::clone(&listener), Arc::clone(&open));
    let thread = thread::Builder::new()
        .name("ssh-agent".to_owned())
        .spawn(move || thread::scope(|scope| listen(scope, &ours, &theirs, &line)))?;
    Ok(Forwarding { path, listener, open, thread: Some(thread) })
}

impl Forwarding {
    /// The socket.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        open.ended = true;
        for stream in open.conversations.values().flatten() {
            // Where the other side has hung up already there is nothing left to end.
            let _ended = stream.shutdown(Shutdown::Both);
        }
        drop(open);
        let _woken = shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
        let _removed = std::fs::remove_file(&self.path);
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes connections until the step is over.
fn listen<'scope>(
    scope: &'scope Scope<'scope, '_>,
    listener: &UnixListener,
    open: &'scope Mutex<Open>,
    line: &'scope Line,
) {
    loop {
        let accepted = listener.accept();
        if lock(open).ended {
            return;
        }
        let Ok((client, _)) = accepted else {
            // No descriptor is free, for one; the step may close some.
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        let Some((number, agent)) = begin(&client, open, line) else { continue };
        let talk = move || {
            // How a conversation ends is between the step's program and the agent.
            let _ended = if line.raw { relay(&client, &agent) } else { filter(&client, &agent) };
            lock(open).conversations.remove(&number);
        };
        if thread::Builder::new().spawn_scoped(scope, talk).is_err() {
            lock(open).conversations.remove(&number);
        }
    }
}

/// Connects to the agent; `None` where that fails or too many talk already.
fn begin(client: &UnixStream, open: &Mutex<Open>, line: &Line) -> Option<(u64, UnixStream)> {
    if lock(open).conversations.len() >= CONVERSATIONS_MAX {
        return None;
    }
    let agent = UnixStream::connect(&line.agent).ok()?;
    let pair = [client.try_clone().ok()?, agent.try_clone().ok()?];
    let mut open = lock(open);
    if open.ended {
        return None;
    }
    let number = open.next;
    open.next += 1;
    open.conversations.insert(number, pair);
    Some((number, agent))
}

/// Request by request: those that list or use keys go to the agent, others are refused here.
fn filter(client: &UnixStream, agent: &UnixStream) -> io::Result<()> {
    while let Some(request) = read_frame(client)? {
        let answer = match request.first() {
            Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)) => {
                write_frame(agent, &request)?;
                match read_frame(agent)? {
                    Some(answer) => answer,
                    None => break,
                }
            }
            _ => vec![FAILURE],
        };
        write_frame(client, &answer)?;
    }
    Ok(())
}

/// Both directions at once, as they come.
fn relay(client: &UnixStream, agent: &UnixStream) -> io::Result<()> {
    let copy = |mut from: &UnixStream, mut to: &UnixStream| {
        let copied = io::copy(&mut from, &mut to);
        let _ended = to.shutdown(Shutdown::Write);
        copied.map(drop)
    };
    thread::scope(|scope| {
        let answers = scope.spawn(|| copy(agent, client));
        let asked = copy(client, agent);
        let _ended = answers.join();
        asked
    })
}

/// A message: four bytes of length, then as many bytes. `None` at the end of the stream.
fn read_frame(mut stream: &UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length == 0 || length > FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a message of an SSH agent"));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message)?;
    Ok(Some(message))
}

fn write_frame(mut stream: &UnixStream, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(message);
    stream.write_all(&frame)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;
    use std::time::Duration;

    use super::{FAILURE, FRAME_BYTES_MAX, Forwarding, forward, read_frame, write_frame};
    use crate::build::agents::Agents;

    /// An agent that answers everything with what it was asked.
    fn echo(folder: &Path) -> String {
        let socket = folder.join("real");
        let listener = UnixListener::bind(&socket).expect("bound");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    while let Ok(Some(message)) = read_frame(&stream) {
                        write_frame(&stream, &message).expect("answered");
                    }
                });
            }
        });
        socket.display().to_string()
    }

    fn forwarding(folder: &Path, suffix: &str) -> Forwarding {
        let options = [format!("default={}{suffix}", echo(folder))];
        let agents = Agents::parse(&options, |_| None).expect("an agent");
        let owner = (0o640, nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        forward(agents.get("default").expect("known"), folder, "a0", owner).expect("forwarded")
    }

    fn ask(stream: &UnixStream, message: &[u8]) -> Option<Vec<u8>> {
        write_frame(stream, message).expect("sent");
        read_frame(stream).expect("an answer")
    }

    #[test]
    fn listing_and_signing_pass_and_nothing_else() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let forwarding = forwarding(folder.path(), "");
        let client = UnixStream::connect(forwarding.path()).expect("connected");
        assert_eq!(ask(&client, &[11]), Some(vec![11]));
        assert_eq!(ask(&client, &[13, 1, 2]), Some(vec![13, 1, 2]));
        for kind in (0..=u8::MAX).filter(|kind| ![11, 13].contains(kind)) {
            assert_eq!(ask(&client, &[kind, 9]), Some(vec![FAILURE]), "{kind}");
        }
        let large = vec![13; FRAME_BYTES_MAX];
        assert_eq!(ask(&client, &large), Some(large));
    }

    #[test]
    fn what_is_no_message_ends_the_conversation() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let forwarding = forwarding(folder.path(), "");
        for length in [0, 0xffff_ffff_u32, 256 * 1024 + 1] {
            let mut client = UnixStream::connect(forwarding.path()).expect("connected");
            client.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
            client.write_all(&length.to_be_bytes()).expect("sent");
            assert_eq!(client.read(&mut [0; 8]).expect("hung up"), 0, "{length}");
        }
    }

    #[test]
    fn raw_hands_everything_through() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let forwarding = forwarding(folder.path(), ",raw=true");
        let client = UnixStream::connect(forwarding.path()).expect("connected");
        assert_eq!(ask(&client, &[19, 1]), Some(vec![19, 1]));
    }

    #[test]
    fn it_ends_while_people_talk() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let forwarding = forwarding(folder.path(), "");
        let path = forwarding.path().to_owned();
        let mut client = UnixStream::connect(&path).expect("connected");
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        assert_eq!(ask(&client, &[11]), Some(vec![11]));
        drop(forwarding);
        assert_eq!(client.read(&mut [0; 8]).expect("hung up"), 0);
        assert!(!path.exists());
    }
}
