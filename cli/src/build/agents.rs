//! `--ssh default|ID[=SOCKET|KEY[,KEY…]][,raw=true]`: the agents that `RUN --mount=type=ssh` may
//! speak to, by id. Private keys go to an agent of the build's own (`super::key_agent`).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::key_agent::KeyAgent;
use crate::failure::{Failure, plain_io};

/// The id of `--ssh` and of the mount where none is given (BuildKit's `sshforward.DefaultID`).
const DEFAULT_ID: &str = "default";

/// BuildKit's limit for one private key, in bytes.
const KEY_BYTES_MAX: u64 = 100 * 1024;

/// The agents of one build, by id.
#[derive(Debug, Default)]
pub(crate) struct Agents {
    by_id: BTreeMap<String, Agent>,
}

/// One agent that steps may speak to.
#[derive(Debug)]
pub(crate) struct Agent {
    /// Its socket.
    pub(crate) socket: PathBuf,
    /// Everything is handed through, whatever protocol it is.
    pub(crate) raw: bool,
    /// Ends the build's own agent when it is dropped.
    _own: Option<KeyAgent>,
}

/// A private key as its file holds it.
#[derive(Debug)]
pub(crate) struct Key {
    /// The file.
    pub(crate) path: PathBuf,
    /// Its content; in no message.
    pub(crate) text: Vec<u8>,
}

/// One option, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Words {
    id: String,
    paths: Vec<String>,
    raw: bool,
}

impl Agents {
    /// Reads the options; `variable` looks up the caller's environment.
    ///
    /// # Errors
    /// A malformed option, an id given twice, a file that is not there or no key, no agent in
    /// `SSH_AUTH_SOCK`, OpenSSH missing where keys are given.
    pub(crate) fn parse(
        options: &[String],
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Failure> {
        let mut by_id = BTreeMap::new();
        for option in options {
            let bad = |why: &str| Failure::usage(format_args!("invalid --ssh `{option}`: {why}"));
            let words = words(option).map_err(|why| bad(&why))?;
            if by_id.contains_key(&words.id) {
                let why = format!("the id `{}` is given twice", words.id);
                return Err(bad(&why).hint("give each agent an id of its own: --ssh ID=SOCKET"));
            }
            let agent = agent(&words, &variable, &bad)?;
            by_id.insert(words.id, agent);
        }
        Ok(Self { by_id })
    }

    /// The agent of an id, `None` where nobody gave one.
    pub(crate) fn get(&self, id: &str) -> Option<&Agent> {
        self.by_id.get(id)
    }
}

fn words(option: &str) -> Result<Words, String> {
    let mut fields = option.split(',');
    let first = fields.next().unwrap_or_default();
    let (id, path) = match first.split_once('=') {
        Some((id, path)) => (id, Some(path)),
        None => (first, None),
    };
    let id = if id.is_empty() { DEFAULT_ID } else { id }.to_owned();
    let mut words = Words { id, paths: path.into_iter().map(str::to_owned).collect(), raw: false };
    for field in fields {
        match field.strip_prefix("raw=") {
            Some("true" | "1") => words.raw = true,
            Some("false" | "0") => words.raw = false,
            Some(value) => return Err(format!("raw is true or false, not `{value}`")),
            None if words.paths.is_empty() => {
                return Err(format!("`{field}` is no option; paths are given as ID=PATH,PATH"));
            }
            None => words.paths.push(field.to_owned()),
        }
    }
    if let [path] = words.paths.as_slice()
        && path.is_empty()
    {
        words.paths.clear();
    }
    Ok(words)
}

fn agent(
    words: &Words,
    variable: &impl Fn(&str) -> Option<OsString>,
    bad: &impl Fn(&str) -> Failure,
) -> Result<Agent, Failure> {
    if words.paths.is_empty() {
        let socket = variable("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty());
        let socket = socket.map(PathBuf::from).ok_or_else(|| {
            bad("SSH_AUTH_SOCK is not set, so there is no agent to forward").hint(
                "start one (`eval $(ssh-agent)`, `ssh-add`), or name a socket or a private key: --ssh ID=PATH",
            )
        })?;
        if !is_socket(&socket, bad)? {
            return Err(bad(&format!("SSH_AUTH_SOCK is no socket: `{}`", socket.display())));
        }
        return Ok(Agent { socket, raw: words.raw, _own: None });
    }
    let mut keys = Vec::new();
    for path in words.paths.iter().map(Path::new) {
        if is_socket(path, bad)? {
            if words.paths.len() > 1 {
                return Err(bad("a socket stands alone, without keys or a second socket"));
            }
            return Ok(Agent { socket: path.to_owned(), raw: words.raw, _own: None });
        }
        if words.raw {
            let why = format!("raw=true needs a socket, `{}` is none", path.display());
            return Err(bad(&why));
        }
        keys.push(Key { path: path.to_owned(), text: key(path, bad)? });
    }
    let own = KeyAgent::start(&keys)?;
    Ok(Agent { socket: own.socket(), raw: false, _own: Some(own) })
}

fn is_socket(path: &Path, bad: &impl Fn(&str) -> Failure) -> Result<bool, Failure> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(found.file_type().is_socket()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(bad(&format!("file `{}` does not exist", path.display()))
                .hint("name an agent's socket or a private key"))
        }
        Err(e) => Err(bad(&format!("cannot look at `{}`: {}", path.display(), plain_io(&e)))),
    }
}

/// A private key that needs nobody to be opened.
fn key(path: &Path, bad: &impl Fn(&str) -> Failure) -> Result<Vec<u8>, Failure> {
    let name = path.display();
    let unreadable =
        |e: std::io::Error| bad(&format!("cannot read the key `{name}`: {}", plain_io(&e)));
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(KEY_BYTES_MAX + 1).read_to_end(&mut text).map_err(unreadable)?;
    let shown = String::from_utf8_lossy(&text);
    if text.len() as u64 > KEY_BYTES_MAX || !shown.contains("PRIVATE KEY-----") {
        return Err(bad(&format!("`{name}` is neither a socket nor a private key")));
    }
    if is_locked(&shown) {
        return Err(bad(&format!("the key `{name}` has a passphrase"))
            .hint("add it to an agent (`ssh-add`) and forward that with --ssh default"));
    }
    Ok(text)
}

/// Whether a key has a passphrase. PEM says so in words; OpenSSH's own format (PROTOCOL.key) begins
/// with `openssh-key-v1`, a zero, and the cipher's name, which is `none` without one.
fn is_locked(text: &str) -> bool {
    const OPENSSH: &str = "b3BlbnNzaC1rZXktdjEA";
    const WITHOUT_CIPHER: &str = "AAAABG5vbmU";
    let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    match body.strip_prefix(OPENSSH) {
        Some(rest) => !rest.starts_with(WITHOUT_CIPHER),
        None => text.contains("ENCRYPTED"),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::{Agents, Words, is_locked, words};

    fn refusal(options: &[&str], agent: Option<&str>) -> String {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let found = Agents::parse(&options, |_| agent.map(OsString::from));
        found.expect_err("refused").message().to_owned()
    }

    #[test]
    fn options_are_taken_apart() {
        for (option, id, paths, raw) in [
            ("default", "default", &[][..], false),
            ("default=", "default", &[], false),
            ("=/a", "default", &["/a"], false),
            ("git=/a,/b", "git", &["/a", "/b"], false),
            ("git=/a=b,raw=true", "git", &["/a=b"], true),
            ("default,raw=true", "default", &[], true),
        ] {
            let paths = paths.iter().map(|&path: &&str| path.to_owned()).collect();
            assert_eq!(words(option), Ok(Words { id: id.to_owned(), paths, raw }), "{option}");
        }
        assert!(words("default,/a").is_err());
        assert!(words("a=/b,raw=maybe").is_err());
    }

    #[test]
    fn mistakes_are_named() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let socket = folder.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
        let socket = socket.to_str().expect("UTF-8");
        let file = folder.path().join("f");
        std::fs::write(&file, "no key").expect("written");
        let file = file.to_str().expect("UTF-8");
        for (options, agent, word) in [
            (&["default"][..], None, "SSH_AUTH_SOCK is not set"),
            (&["default"], Some(""), "SSH_AUTH_SOCK is not set"),
            (&["default"], Some("/nowhere"), "does not exist"),
            (&["default"], Some(file), "is no socket"),
            (&["default", "default"], Some(socket), "given twice"),
            (&["a=/nowhere"], None, "`/nowhere` does not exist"),
            (&[&format!("a={file}")], None, "neither a socket nor a private key"),
            (&[&format!("a={file},raw=true")], None, "raw=true needs a socket"),
            (&[&format!("a={socket},{file}")], None, "stands alone"),
        ] {
            let message = refusal(options, agent);
            assert!(message.contains(word), "{options:?}: {message}");
        }
    }

    #[test]
    fn passphrases_are_seen() {
        let key = |body: &str| format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\n-----END");
        assert!(!is_locked(&key("b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ")));
        assert!(is_locked(&key("b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAG")));
        assert!(is_locked("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n"));
        assert!(is_locked("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMII\n"));
        assert!(!is_locked("-----BEGIN PRIVATE KEY-----\nMII\n"));
    }
}
