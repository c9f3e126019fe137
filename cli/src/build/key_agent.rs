//! An `ssh-agent` of the build's own, for `--ssh ID=KEY`: the keys are in no process of a step.
//!
//! OpenSSH's agent stays as long as the command that it starts. That command reads its standard
//! input, whose other end this process holds: when the build ends, however it ends, so does the agent.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::agents::Key;
use crate::failure::Failure;

/// The socket's name in the agent's folder.
const SOCKET: &str = "agent";

/// Told when the agent listens; ends the agent at the end of the input.
const SCRIPT: &str = "echo; cat > /dev/null; kill \"$SSH_AGENT_PID\"";

/// A running agent; it ends when this is dropped.
pub(crate) struct KeyAgent {
    child: Child,
    /// The agent's folder, open: paths of sockets may not be longer than 107 bytes (unix(7)), those
    /// below `/proc/self/fd` never are.
    open: File,
    folder: tempfile::TempDir,
}

impl fmt::Debug for KeyAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyAgent({})", self.folder.path().display())
    }
}

impl KeyAgent {
    /// Starts an agent that holds these keys.
    ///
    /// # Errors
    /// OpenSSH is not installed, a key that it does not take.
    pub(crate) fn start(keys: &[Key]) -> Result<Self, Failure> {
        let failed = |e: io::Error| Failure::io("make", "a folder for ssh-agent", &e);
        let folder = tempfile::Builder::new().prefix("kiln-ssh-").tempdir().map_err(failed)?;
        let open = File::open(folder.path()).map_err(failed)?;
        let mut command = Command::new("ssh-agent");
        command.args(["-a", SOCKET, "sh", "-c", SCRIPT]).current_dir(folder.path());
        // Ctrl-C is for this process, which then ends the agent.
        command.process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|e| missing("ssh-agent", &e))?;
        let mut agent = Self { child, open, folder };
        agent.wait_for_socket()?;
        for key in keys {
            agent.add(key)?;
        }
        Ok(agent)
    }

    /// Its socket, as this process reaches it.
    pub(crate) fn socket(&self) -> PathBuf {
        format!("/proc/self/fd/{}/{SOCKET}", self.open.as_raw_fd()).into()
    }

    fn wait_for_socket(&mut self) -> Result<(), Failure> {
        let mut line = [0];
        let heard = match &mut self.child.stdout {
            Some(stdout) => stdout.read(&mut line).unwrap_or(0),
            None => 0,
        };
        if heard > 0 {
            return Ok(());
        }
        let mut why = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            let _told = stderr.read_to_string(&mut why);
        }
        Err(Failure::environment(format_args!("cannot start `ssh-agent`: {}", why.trim())))
    }

    /// The key goes in by a pipe: its file may have any mode, and is not read twice.
    fn add(&self, key: &Key) -> Result<(), Failure> {
        let mut command = Command::new("ssh-add");
        command.args(["-q", "-"]).current_dir(self.folder.path()).env("SSH_AUTH_SOCK", SOCKET);
        command.env("SSH_ASKPASS", "/bin/false").env("SSH_ASKPASS_REQUIRE", "force");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| missing("ssh-add", &e))?;
        if let Some(mut stdin) = child.stdin.take() {
            // Where it does not read to the end it says why below.
            let _written = stdin.write_all(&key.text);
        }
        let output = child.wait_with_output().map_err(|e| Failure::io("run", "ssh-add", &e))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let name = key.path.display();
        Err(Failure::usage(format_args!("ssh-add does not take the key `{name}`: {}", said.trim()))
            .hint("it has to be a private key that OpenSSH reads"))
    }
}

impl Drop for KeyAgent {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _status = self.child.wait();
    }
}

fn missing(program: &str, error: &io::Error) -> Failure {
    let failure = Failure::io("run", program, error);
    if error.kind() != io::ErrorKind::NotFound {
        return failure;
    }
    failure.hint("--ssh with private keys needs OpenSSH's agent: install the package openssh-client, or forward an agent's socket")
}
