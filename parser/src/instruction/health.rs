//! HEALTHCHECK.

use super::flags::{Flags, Kind};
use super::{Context, Word};
use crate::diagnostic::Diagnostic;
use crate::{duration, grammar, suggest};

/// A health check; times in nanoseconds, 0 where not given (the runtime's default holds).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", text]`.
    pub test: Vec<String>,
    /// `--interval`.
    pub interval: i64,
    /// `--timeout`.
    pub timeout: i64,
    /// `--start-period`.
    pub start_period: i64,
    /// `--start-interval`.
    pub start_interval: i64,
    /// `--retries`.
    pub retries: i32,
}

const FLAGS: &[(&str, Kind)] = &[
    ("interval", Kind::Text),
    ("timeout", Kind::Text),
    ("start-period", Kind::Text),
    ("start-interval", Kind::Text),
    ("retries", Kind::Text),
];

pub(super) fn healthcheck(context: &Context<'_>) -> Result<Healthcheck, Diagnostic> {
    let rest = context.rest();
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    let (kind, command) = (&rest[..end], rest[end..].trim_start());
    match kind.to_ascii_uppercase().as_str() {
        "" => Err(context.error("HEALTHCHECK requires at least one argument")),
        "NONE" if command.is_empty() => {
            Ok(Healthcheck { test: vec!["NONE".to_owned()], ..Healthcheck::default() })
        }
        "NONE" => Err(context.error("HEALTHCHECK NONE takes no arguments")),
        "CMD" => check(context, command),
        other => {
            let message = format!("Unknown type {other:?} in HEALTHCHECK (try CMD)");
            let near = suggest::did_you_mean(other, ["CMD", "NONE"]);
            let help =
                near.unwrap_or_else(|| "write HEALTHCHECK CMD command or HEALTHCHECK NONE".into());
            Err(context.error(message).help(help))
        }
    }
}

fn check(context: &Context<'_>, command: &str) -> Result<Healthcheck, Diagnostic> {
    let flags = Flags::read(context, FLAGS)?;
    let time = |name: &str| flags.text(name).map_or(Ok(0), |word| interval(name, &word));
    let retries = flags.text("retries").map_or(Ok(0), |word| retries(&word))?;
    Ok(Healthcheck {
        test: test(context, command)?,
        interval: time("interval")?,
        timeout: time("timeout")?,
        start_period: time("start-period")?,
        start_interval: time("start-interval")?,
        retries,
    })
}

fn test(context: &Context<'_>, command: &str) -> Result<Vec<String>, Diagnostic> {
    let missing = || context.error("Missing command after HEALTHCHECK CMD");
    let mut test = match grammar::json(command) {
        grammar::Json::Strings(tokens) => {
            std::iter::once("CMD".to_owned()).chain(tokens.into_iter().map(|t| t.text)).collect()
        }
        grammar::Json::Text if command.is_empty() => return Err(missing()),
        grammar::Json::Text => vec!["CMD-SHELL".to_owned(), command.to_owned()],
        grammar::Json::NotStrings => {
            return Err(context
                .error("when using JSON array syntax, arrays must be comprised of strings only"));
        }
    };
    if test.len() < 2 {
        return Err(missing());
    }
    test.shrink_to_fit();
    Ok(test)
}

fn interval(name: &str, word: &Word) -> Result<i64, Diagnostic> {
    if word.text.is_empty() {
        return Ok(0);
    }
    let nanoseconds = duration::parse(&word.text)
        .map_err(|why| Diagnostic::error(word.span, why).help("for example 30s, 1m30s or 500ms"))?;
    if nanoseconds != 0 && nanoseconds < 1_000_000 {
        let message = format!("Interval {name:?} cannot be less than 1ms");
        return Err(Diagnostic::error(word.span, message));
    }
    Ok(nanoseconds)
}

fn retries(word: &Word) -> Result<i32, Diagnostic> {
    if word.text.is_empty() {
        return Ok(0);
    }
    let number: i32 = word.text.parse().map_err(|_| {
        let message = format!("strconv.ParseInt: parsing {:?}: invalid syntax", word.text);
        Diagnostic::error(word.span, message).help("--retries takes a whole number")
    })?;
    if number < 0 {
        let message = format!("--retries cannot be negative ({number})");
        return Err(Diagnostic::error(word.span, message));
    }
    Ok(number)
}
