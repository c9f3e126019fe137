//! RUN, CMD, ENTRYPOINT and SHELL: shell form, exec form, heredocs.

use super::flags::{Flags, Kind};
use super::{Context, Word};
use crate::diagnostic::Diagnostic;
use crate::lines::Heredoc;
use crate::suggest;

/// A command line in one of its two forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Text for the shell; empty where nothing was written.
    Shell(String),
    /// Arguments, taken literally.
    Exec(Vec<String>),
}

/// RUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The command.
    pub command: Command,
    /// Inline documents, in order.
    pub heredocs: Vec<Heredoc>,
    /// `--mount` values, not expanded.
    pub mounts: Vec<Word>,
    /// `--network`: `default`, `none` or `host`.
    pub network: Option<Word>,
    /// `--security`: `sandbox` or `insecure`.
    pub security: Option<Word>,
    /// `--device` values.
    pub devices: Vec<Word>,
}

const RUN_FLAGS: &[(&str, Kind)] = &[
    ("mount", Kind::List),
    ("network", Kind::Text),
    ("security", Kind::Text),
    ("device", Kind::List),
];

pub(super) fn run(context: &Context<'_>) -> Result<Run, Diagnostic> {
    let flags = Flags::read(context, RUN_FLAGS)?;
    let network = one_of(flags.text("network"), "network mode", &["default", "none", "host"])?;
    let security = match flags.text("security") {
        Some(word) if !matches!(word.text.as_str(), "sandbox" | "insecure") => {
            let message = format!("security {:?} is not valid", word.text);
            return Err(
                Diagnostic::error(word.span, message).help("security modes: sandbox, insecure")
            );
        }
        other => other,
    };
    let command = form(context)?;
    if command == Command::Exec(Vec::new()) {
        return Err(context.error("arguments are required").help("name a program in the array"));
    }
    Ok(Run {
        command,
        heredocs: context.heredocs().to_vec(),
        mounts: flags.list("mount"),
        network,
        security,
        devices: flags.list("device"),
    })
}

fn one_of(word: Option<Word>, what: &str, known: &[&str]) -> Result<Option<Word>, Diagnostic> {
    match &word {
        Some(given) if !known.contains(&given.text.as_str()) => {
            let message = format!("invalid {what} {:?}", given.text);
            let near = suggest::did_you_mean(&given.text, known.iter().copied());
            let help = near.unwrap_or_else(|| format!("{what}s: {}", known.join(", ")));
            Err(Diagnostic::error(given.span, message).help(help))
        }
        _ => Ok(word),
    }
}

pub(super) fn cmd(context: &Context<'_>) -> Result<Command, Diagnostic> {
    Flags::read(context, &[])?;
    form(context)
}

/// Either form of a command; the exec form where the text is a JSON array of strings.
pub(super) fn form(context: &Context<'_>) -> Result<Command, Diagnostic> {
    Ok(match context.json()? {
        Some(words) => Command::Exec(words.into_iter().map(|word| word.text).collect()),
        None => Command::Shell(context.rest().to_owned()),
    })
}

pub(super) fn shell(context: &Context<'_>) -> Result<Vec<String>, Diagnostic> {
    Flags::read(context, &[])?;
    match form(context)? {
        Command::Exec(words) => context.at_least_one(words),
        Command::Shell(text) if text.is_empty() => context.at_least_one(Vec::new()),
        Command::Shell(text) => {
            let message =
                format!("SHELL requires the arguments to be in JSON form, not \"{text}\"");
            Err(context.error(message).help("write SHELL [\"/bin/bash\", \"-c\"]"))
        }
    }
}
