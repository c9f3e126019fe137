//! What a user reads when something fails: kind, message, hints. Every error of a library becomes
//! a [`Failure`] here or in a `wire` file; only `main.rs` prints one.
//!
//! Style: the message is a phrase in lower case without a period; hints stand on their own lines.

use std::fmt::{self, Display, Formatter};
use std::io;

use crate::exit::Exit;

/// Whose fault it is; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The Dockerfile, the context, an option's value, a command in a step.
    Input,
    /// Options that contradict each other or are not supported.
    Usage,
    /// Disk, kernel, network, registry.
    Environment,
    /// Ctrl-C.
    Interrupted,
    /// A command of `kiln run` that says itself what is wrong; its exit code.
    Command(u8),
}

/// An error on its way to the terminal.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
    hints: Vec<String>,
    /// A drawn source excerpt. It says the message itself, so the message is not repeated.
    excerpt: Option<String>,
}

impl Failure {
    fn new(kind: Kind, message: impl Display) -> Self {
        Self { kind, message: message.to_string(), hints: Vec::new(), excerpt: None }
    }

    /// The input is at fault.
    pub(crate) fn input(message: impl Display) -> Self {
        Self::new(Kind::Input, message)
    }

    /// The command line is at fault.
    pub(crate) fn usage(message: impl Display) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// The machine, the network or a registry is at fault.
    pub(crate) fn environment(message: impl Display) -> Self {
        Self::new(Kind::Environment, message)
    }

    /// The input is at fault, and what is wrong with it was told already.
    pub(crate) fn told() -> Self {
        Self::new(Kind::Input, "")
    }

    /// A command of `kiln run` ended with this code, after it said what it had to.
    pub(crate) fn of_command(code: u8) -> Self {
        Self::new(Kind::Command(code), "")
    }

    /// Whether there is nothing left to tell.
    pub(crate) fn is_told(&self) -> bool {
        self.message.is_empty() && self.excerpt.is_none()
    }

    /// The user stopped the program.
    pub(crate) fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted")
    }

    /// Whether the user stopped the program.
    pub(crate) fn is_interruption(&self) -> bool {
        self.kind == Kind::Interrupted
    }

    /// An I/O error with what was tried on which thing.
    pub(crate) fn io(operation: &str, thing: impl Display, source: &io::Error) -> Self {
        Self::environment(format_args!("cannot {operation} `{thing}`: {}", plain_io(source)))
    }

    /// Adds a line that says what to do.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Gives a drawn source excerpt that says the message.
    #[must_use]
    pub(crate) fn excerpt(mut self, excerpt: String) -> Self {
        self.excerpt = Some(excerpt);
        self
    }

    /// The phrase alone.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The exit code that goes with it.
    pub(crate) const fn exit(&self) -> Exit {
        match self.kind {
            Kind::Input => Exit::Failed,
            Kind::Usage => Exit::Usage,
            Kind::Environment => Exit::Environment,
            Kind::Interrupted => Exit::Interrupted,
            Kind::Command(code) => Exit::Command(code),
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.excerpt {
            Some(excerpt) => write!(f, "{}", excerpt.trim_end())?,
            None => write!(f, "error: {}", self.message)?,
        }
        for hint in &self.hints {
            write!(f, "\n  help: {hint}")?;
        }
        match remedy(&self.message).filter(|_| self.kind == Kind::Environment) {
            Some(remedy) => write!(f, "\n  help: {remedy}"),
            None => Ok(()),
        }
    }
}

const ROOM: &str = "`kiln prune` makes room, `kiln du` tells what the store uses";
const OWNER: &str =
    "the store is read-only, or belongs to somebody else in part: `chown -R` gives it to one user";
const DAMAGED: &str = "the file system is damaged: check it, then run `kiln fsck --repair`";

/// What a machine lacks, in words of the kernel or of SQLite that come together, and what helps.
const LACKS: &[(&[&str], &str)] = &[
    (&["no space left on device"], ROOM),
    (&["database or disk is full"], ROOM),
    (&["disk quota exceeded"], ROOM),
    (
        &["file too large"],
        "the caller's limit for the size of a file (`ulimit -f`), or the disk's, is reached",
    ),
    (
        &["too many open files"],
        "raise the caller's limit (`ulimit -n`), or run fewer steps at once (--jobs)",
    ),
    (&["cross-device link"], "all folders of the store have to be on one file system"),
    (
        &["no locks available"],
        "the store needs a file system with locks: choose another place with --root",
    ),
    (&["input/output error"], "the disk, or the way to it, fails: `dmesg` tells more"),
    (&["bad message"], DAMAGED),
    (&["structure needs cleaning"], DAMAGED),
    (&["readonly database"], OWNER),
    (&["the store", "permission denied"], OWNER),
];

/// What helps, where the machine is at fault whatever was tried.
pub(crate) fn remedy(message: &str) -> Option<&'static str> {
    let message = message.to_lowercase();
    let fits = |words: &[&str]| words.iter().all(|word| message.contains(word));
    LACKS.iter().find(|(words, _)| fits(words)).map(|(_, remedy)| *remedy)
}

/// The text of an I/O error without Rust's ` (os error 2)`, and the next cause where there is one.
pub(crate) fn plain_io(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(at) => text[..at].to_lowercase(),
        None => text,
    }
}

/// An error with all its causes on one line, each said once.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{Failure, plain_io};
    use crate::exit::Exit;

    #[test]
    fn hints_stand_on_their_own_lines() {
        let failure = Failure::input("no such stage `x`").hint("did you mean `y`?");
        assert_eq!(failure.to_string(), "error: no such stage `x`\n  help: did you mean `y`?");
        assert_eq!(failure.exit(), Exit::Failed);
    }

    #[test]
    fn a_full_disk_has_a_remedy() {
        let error = io::Error::from_raw_os_error(28);
        let text = Failure::io("write", "/store", &error).to_string();
        assert!(text.ends_with("`kiln du` tells what the store uses"), "{text}");
    }

    #[test]
    fn system_errors_lose_their_number() {
        let error = io::Error::from_raw_os_error(2);
        assert_eq!(plain_io(&error), "no such file or directory");
    }
}
