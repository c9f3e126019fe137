//! FROM, EXPOSE, VOLUME, ONBUILD and the instructions of one word.

use std::sync::LazyLock;

use regex::Regex;

use super::flags::{Flags, Kind};
use super::{Context, Word};
use crate::diagnostic::Diagnostic;

static STAGE_NAME: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("^[a-z][a-z0-9-_.]*$").expect("the pattern is valid"));

/// FROM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct From {
    /// `--platform`, not expanded.
    pub platform: Option<Word>,
    /// The base: a stage, an image, a named context; not expanded.
    pub image: Word,
    /// `AS` as written.
    pub as_word: Option<Word>,
    /// The stage's name in lower case.
    pub name: Option<Word>,
    /// The stage's name as written.
    pub written_name: Option<String>,
}

/// ONBUILD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Onbuild {
    /// The trigger as the image's configuration stores it, heredocs behind it.
    pub trigger: String,
}

pub(super) fn from(context: &Context<'_>) -> Result<From, Diagnostic> {
    let words = context.list();
    let flags = Flags::read(context, &[("platform", Kind::Text)])?;
    let (image, as_word, name) = match words.as_slice() {
        [image] => (image.clone(), None, None),
        [image, as_word, name] if as_word.text.eq_ignore_ascii_case("as") => {
            (image.clone(), Some(as_word.clone()), Some(stage_name(name)?))
        }
        _ => {
            return Err(context
                .error("FROM requires either one or three arguments")
                .help("write FROM IMAGE or FROM IMAGE AS NAME"));
        }
    };
    let written_name = words.get(2).map(|word| word.text.clone());
    Ok(From { platform: flags.text("platform"), image, as_word, name, written_name })
}

fn stage_name(word: &Word) -> Result<Word, Diagnostic> {
    let text = word.text.to_lowercase();
    if STAGE_NAME.is_match(&text) {
        return Ok(Word { text, span: word.span });
    }
    let message = format!(
        "invalid name for build stage: {:?}, name can't start with a number or contain symbols",
        word.text
    );
    Err(Diagnostic::error(word.span, message).help("a letter first, then letters, digits, - _ ."))
}

pub(super) fn single(context: &Context<'_>) -> Result<Word, Diagnostic> {
    let word = context.single()?;
    Flags::read(context, &[])?;
    Ok(word)
}

pub(super) fn expose(context: &Context<'_>) -> Result<Vec<Word>, Diagnostic> {
    let mut words = context.at_least_one(context.list())?;
    Flags::read(context, &[])?;
    words.sort_by(|a, b| a.text.cmp(&b.text));
    Ok(words)
}

pub(super) fn volume(context: &Context<'_>) -> Result<Vec<Word>, Diagnostic> {
    let mut words = context.at_least_one(context.list_or_json()?)?;
    Flags::read(context, &[])?;
    for word in &mut words {
        word.text = word.text.trim().to_owned();
        if word.text.is_empty() {
            return Err(context.error("VOLUME specified can not be an empty string"));
        }
    }
    Ok(words)
}

pub(super) fn onbuild(context: &Context<'_>) -> Result<Onbuild, Diagnostic> {
    let rest = context.rest();
    if rest.is_empty() && context.tokens.flags.is_empty() {
        return Err(context.error("ONBUILD requires at least one argument"));
    }
    Flags::read(context, &[])?;
    let word = rest.split_whitespace().next().unwrap_or_default().to_uppercase();
    match word.as_str() {
        "ONBUILD" => {
            return Err(context
                .error("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
                .help("a trigger runs in the stage that names this image in FROM, not later"));
        }
        "FROM" | "MAINTAINER" => {
            return Err(context
                .error(format!("{word} isn't allowed as an ONBUILD trigger"))
                .help("triggers are instructions of a stage, such as COPY and RUN"));
        }
        _ => {}
    }
    let mut trigger = rest.to_owned();
    for document in context.heredocs() {
        trigger.push('\n');
        trigger.push_str(&document.content);
        trigger.push_str(&document.name);
    }
    Ok(Onbuild { trigger })
}
