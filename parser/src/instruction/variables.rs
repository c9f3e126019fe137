//! ARG, ENV and LABEL: names and values.

use super::flags::Flags;
use super::{Context, Word};
use crate::diagnostic::Diagnostic;
use crate::grammar;

/// `name[=value]` of ARG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// The name, as written.
    pub name: Word,
    /// The default; `None` where there is no `=`.
    pub value: Option<Word>,
}

/// `name=value` of ENV and LABEL; quotes are still in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The name.
    pub name: Word,
    /// The value.
    pub value: Word,
    /// Written as `ENV name value`, the old form.
    pub legacy: bool,
}

pub(super) fn arg(context: &Context<'_>) -> Result<Vec<Argument>, Diagnostic> {
    Flags::read(context, &[])?;
    let words = context.at_least_one(grammar::words(context.rest(), context.escape))?;
    words
        .into_iter()
        .map(|token| {
            let (name, value) = split(context, &token);
            if name.text.is_empty() {
                return Err(Diagnostic::error(context.place(&token), "ARG names can not be blank")
                    .help("write ARG NAME or ARG NAME=DEFAULT"));
            }
            Ok(Argument { name, value })
        })
        .collect()
}

pub(super) fn pairs(context: &Context<'_>) -> Result<Vec<Pair>, Diagnostic> {
    Flags::read(context, &[])?;
    let words = context.at_least_one(grammar::words(context.rest(), context.escape))?;
    if words.first().is_some_and(|first| !first.text.contains('=')) {
        return legacy(context).map(|pair| vec![pair]);
    }
    words
        .into_iter()
        .map(|token| {
            let (name, value) = split(context, &token);
            let Some(value) = value else {
                let message = format!(
                    "Syntax error - can't find = in {:?}. Must be of the form: name=value",
                    token.text
                );
                return Err(Diagnostic::error(context.place(&token), message)
                    .help("a value with blanks needs quotes: NAME=\"a b\""));
            };
            if name.text.is_empty() {
                let message = format!("{} names can not be blank", context.name);
                return Err(Diagnostic::error(context.place(&token), message));
            }
            Ok(Pair { name, value, legacy: false })
        })
        .collect()
}

/// `ENV name the rest of the line`.
fn legacy(context: &Context<'_>) -> Result<Pair, Diagnostic> {
    let rest = context.rest();
    let end = rest.find(grammar::is_blank).unwrap_or(rest.len());
    let value_start =
        end + (rest[end..].len() - rest[end..].trim_start_matches(grammar::is_blank).len());
    if value_start >= rest.len() {
        return Err(context
            .error(format!("{} must have two arguments", context.name))
            .help(format!("write {} NAME=VALUE", context.name)));
    }
    let piece = |range: std::ops::Range<usize>| {
        context.word(grammar::Token { text: rest[range.clone()].to_owned(), range })
    };
    Ok(Pair { name: piece(0..end), value: piece(value_start..rest.len()), legacy: true })
}

fn split(context: &Context<'_>, token: &grammar::Token) -> (Word, Option<Word>) {
    let Some(at) = token.text.find('=') else { return (context.word(token.clone()), None) };
    let start = token.range.start;
    let name = grammar::Token { text: token.text[..at].to_owned(), range: start..start + at };
    let value = grammar::Token {
        text: token.text[at + 1..].to_owned(),
        range: start + at + 1..token.range.end.max(start + at + 1),
    };
    (context.word(name), Some(context.word(value)))
}
