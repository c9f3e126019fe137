//! The instructions of the language, typed but not expanded: words are as they stand in the file.
//! One file an instruction group below `instruction/`; [`parse`] is the table.

mod command;
mod files;
mod flags;
mod health;
mod plain;
mod variables;

use crate::diagnostic::Diagnostic;
use crate::grammar::{self, StatementTokens};
use crate::lines::{Heredoc, LogicalLine};
use crate::source::Span;
use crate::suggest;

pub use command::{Command, Run};
pub use files::{Add, Copy, FileSource, InlineSource};
pub use health::Healthcheck;
pub use plain::{From, Onbuild};
pub use variables::{Argument, Pair};

/// The names of all instructions.
pub const NAMES: &[&str] = &[
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// A piece of text with its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// The text.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// A stage begins.
    From(From),
    /// Build arguments.
    Arg(Vec<Argument>),
    /// Environment.
    Env(Vec<Pair>),
    /// Labels.
    Label(Vec<Pair>),
    /// The author, deprecated.
    Maintainer(Word),
    /// A command to run.
    Run(Run),
    /// Files from a context, a stage or an image.
    Copy(Copy),
    /// Files from a context or the network, archives unpacked.
    Add(Add),
    /// The working directory.
    Workdir(Word),
    /// The user.
    User(Word),
    /// Mount points of the container.
    Volume(Vec<Word>),
    /// Ports, sorted by text.
    Expose(Vec<Word>),
    /// The signal that stops the container.
    Stopsignal(Word),
    /// The shell of shell forms.
    Shell(Vec<String>),
    /// Default command or its arguments.
    Cmd(Command),
    /// The program of the container.
    Entrypoint(Command),
    /// How the container's health is checked.
    Healthcheck(Healthcheck),
    /// An instruction for children of the image.
    Onbuild(Onbuild),
}

/// What the parsers of single instructions read from.
pub(crate) struct Context<'a> {
    line: &'a LogicalLine,
    tokens: &'a StatementTokens,
    escape: char,
    /// The instruction's name in upper case.
    name: String,
}

impl Context<'_> {
    /// The text behind the flags.
    fn rest(&self) -> &str {
        &self.line.text[self.tokens.rest.clone()]
    }

    fn rest_span(&self) -> Span {
        self.line.place(&self.tokens.rest)
    }

    /// The place of a token of the rest.
    fn place(&self, token: &grammar::Token) -> Span {
        let base = self.tokens.rest.start;
        self.line.place(&(token.range.start + base..token.range.end + base))
    }

    fn word(&self, token: grammar::Token) -> Word {
        let span = self.place(&token);
        Word { text: token.text, span }
    }

    fn words(&self, tokens: Vec<grammar::Token>) -> Vec<Word> {
        tokens.into_iter().map(|token| self.word(token)).collect()
    }

    /// Words between blanks.
    fn list(&self) -> Vec<Word> {
        self.words(grammar::list(self.rest()))
    }

    /// The exec form, else words between blanks.
    fn list_or_json(&self) -> Result<Vec<Word>, Diagnostic> {
        match self.json()? {
            Some(words) => Ok(words),
            None => Ok(self.list()),
        }
    }

    /// The exec form; `None` where the text is not JSON.
    fn json(&self) -> Result<Option<Vec<Word>>, Diagnostic> {
        match grammar::json(self.rest()) {
            grammar::Json::Strings(tokens) => Ok(Some(self.words(tokens))),
            grammar::Json::Text => Ok(None),
            grammar::Json::NotStrings => Err(self
                .error("when using JSON array syntax, arrays must be comprised of strings only")
                .help("put every element in double quotes")),
        }
    }

    /// The whole rest as one word.
    fn single(&self) -> Result<Word, Diagnostic> {
        if self.rest().is_empty() {
            return Err(self.error(format!("{} requires exactly one argument", self.name)));
        }
        Ok(Word { text: self.rest().to_owned(), span: self.rest_span() })
    }

    fn at_least_one<T>(&self, words: Vec<T>) -> Result<Vec<T>, Diagnostic> {
        if words.is_empty() {
            return Err(self.error(format!("{} requires at least one argument", self.name)));
        }
        Ok(words)
    }

    fn heredocs(&self) -> &[Heredoc] {
        &self.line.heredocs
    }

    /// An error about the arguments, or the keyword where there are none.
    fn error(&self, message: impl Into<String>) -> Diagnostic {
        let span = if self.rest().is_empty() {
            self.line.place(&self.tokens.keyword.range)
        } else {
            self.rest_span()
        };
        Diagnostic::error(span, message)
    }
}

/// Types one logical line.
///
/// # Errors
/// An unknown instruction or flag, a wrong number of arguments, a malformed value.
pub(crate) fn parse(
    line: &LogicalLine,
    tokens: &StatementTokens,
    escape: char,
) -> Result<Instruction, Diagnostic> {
    let name = tokens.keyword.text.to_ascii_uppercase();
    let context = Context { line, tokens, escape, name: name.clone() };
    let context = &context;
    match name.as_str() {
        "ADD" => files::add(context).map(Instruction::Add),
        "ARG" => variables::arg(context).map(Instruction::Arg),
        "CMD" => command::cmd(context).map(Instruction::Cmd),
        "COPY" => files::copy(context).map(Instruction::Copy),
        "ENTRYPOINT" => command::cmd(context).map(Instruction::Entrypoint),
        "ENV" => variables::pairs(context).map(Instruction::Env),
        "EXPOSE" => plain::expose(context).map(Instruction::Expose),
        "FROM" => plain::from(context).map(Instruction::From),
        "HEALTHCHECK" => health::healthcheck(context).map(Instruction::Healthcheck),
        "LABEL" => variables::pairs(context).map(Instruction::Label),
        "MAINTAINER" => plain::single(context).map(Instruction::Maintainer),
        "ONBUILD" => plain::onbuild(context).map(Instruction::Onbuild),
        "RUN" => command::run(context).map(Instruction::Run),
        "SHELL" => command::shell(context).map(Instruction::Shell),
        "STOPSIGNAL" => plain::single(context).map(Instruction::Stopsignal),
        "USER" => plain::single(context).map(Instruction::User),
        "VOLUME" => plain::volume(context).map(Instruction::Volume),
        "WORKDIR" => plain::single(context).map(Instruction::Workdir),
        _ => Err(unknown(context)),
    }
}

fn unknown(context: &Context<'_>) -> Diagnostic {
    let written = &context.tokens.keyword.text;
    let span = context.line.place(&context.tokens.keyword.range);
    let suggestion = suggest::nearest(written, NAMES.iter().copied());
    let message = match suggestion {
        Some(name) => format!("unknown instruction: {written} (did you mean {name}?)"),
        None => format!("unknown instruction: {written}"),
    };
    let help = match suggestion {
        Some(name) => format!("did you mean {name}?"),
        None => {
            "a line of a command that goes on needs a \\ at the end of the line above".to_owned()
        }
    };
    Diagnostic::error(span, message).help(help)
}
