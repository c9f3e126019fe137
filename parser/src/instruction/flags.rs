//! `--name[=value]` in front of an instruction's arguments.

use super::{Context, Word};
use crate::diagnostic::Diagnostic;
use crate::source::Span;
use crate::suggest;

/// What a flag takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `--link`, `--link=true`, `--link=false`.
    Bool,
    /// `--from=x`, once.
    Text,
    /// `--exclude=x`, any number of times.
    List,
}

/// The flags of one instruction, checked against its table.
pub(super) struct Flags {
    given: Vec<(String, Word)>,
}

impl Flags {
    /// Reads the flags of an instruction that knows those of `table`.
    pub(super) fn read(context: &Context<'_>, table: &[(&str, Kind)]) -> Result<Self, Diagnostic> {
        let mut given: Vec<(String, Word)> = Vec::new();
        for token in &context.tokens.flags {
            let span = context.line.place(&token.range);
            let (name, value) = match token.text.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (token.text.as_str(), None),
            };
            let bare = name.strip_prefix("--").unwrap_or(name);
            let Some(&(_, kind)) = table.iter().find(|(known, _)| *known == bare) else {
                return Err(unknown(context, name, bare, table, span));
            };
            if kind != Kind::List && given.iter().any(|(known, _)| known == bare) {
                return Err(Diagnostic::error(span, format!("duplicate flag specified: {name}"))
                    .help("give the flag once"));
            }
            let text = check(kind, name, value, span)?;
            given.push((bare.to_owned(), Word { text, span }));
        }
        Ok(Self { given })
    }

    /// The value of a text flag.
    pub(super) fn text(&self, name: &str) -> Option<Word> {
        self.given.iter().find(|(known, _)| known == name).map(|(_, word)| word.clone())
    }

    /// The values of a list flag, in order.
    pub(super) fn list(&self, name: &str) -> Vec<Word> {
        let all = self.given.iter().filter(|(known, _)| known == name);
        all.map(|(_, word)| word.clone()).collect()
    }

    /// The value of a boolean flag, `None` where it was not given.
    pub(super) fn switch(&self, name: &str) -> Option<bool> {
        self.text(name).map(|word| word.text == "true")
    }
}

fn check(kind: Kind, name: &str, value: Option<&str>, span: Span) -> Result<String, Diagnostic> {
    let missing = || {
        Diagnostic::error(span, format!("missing a value on flag: {name}"))
            .help(format!("write {name}=VALUE"))
    };
    match (kind, value) {
        (Kind::Bool, None) => Ok("true".to_owned()),
        (Kind::Bool, Some("")) => Err(missing()),
        (Kind::Bool, Some(value)) => match value.to_ascii_lowercase().as_str() {
            lower @ ("true" | "false") => Ok(lower.to_owned()),
            _ => {
                let message = format!("expecting boolean value for flag {name}, not: {value}");
                Err(Diagnostic::error(span, message).help(format!("write {name} or {name}=false")))
            }
        },
        (_, None) => Err(missing()),
        (_, Some(value)) => Ok(value.to_owned()),
    }
}

fn unknown(
    context: &Context<'_>,
    name: &str,
    bare: &str,
    table: &[(&str, Kind)],
    span: Span,
) -> Diagnostic {
    let names = || table.iter().map(|(known, _)| *known);
    let message = match suggest::nearest(bare, names()) {
        Some(near) => format!("unknown flag: {name} (did you mean {near}?)"),
        None => format!("unknown flag: {name}"),
    };
    let help = if table.is_empty() {
        format!("{} takes no flags; a -- in front of the argument ends the flags", context.name)
    } else {
        let known: Vec<String> = names().map(|known| format!("--{known}")).collect();
        format!("flags of {}: {}", context.name, known.join(", "))
    };
    Diagnostic::error(span, message).help(help)
}
