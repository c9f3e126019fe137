//! What lints say of Dockerfiles.

use std::fmt::Write as _;

use kiln_parser::diagnostic::{Diagnostic, Severity};
use kiln_parser::lint::rules;
use kiln_parser::source::Source;
use serde_json::{Value, json};

use super::excerpt::excerpt;
use super::{Format, encoded, location, sarif};

/// The findings of one file.
pub(crate) struct Checked {
    /// The file.
    pub(crate) source: Source,
    /// What lints found.
    pub(crate) warnings: Vec<Diagnostic>,
    /// What keeps the file from being built.
    pub(crate) error: Option<Diagnostic>,
}

impl Checked {
    /// Sorts findings into warnings and the first error.
    pub(crate) fn new(source: Source, found: Vec<Diagnostic>) -> Self {
        let (mut errors, warnings): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|found| found.severity == Severity::Error);
        let error = (!errors.is_empty()).then(|| errors.remove(0));
        Self { source, warnings, error }
    }

    /// Whether there is nothing to complain of.
    pub(crate) fn is_clean(&self) -> bool {
        self.warnings.is_empty() && self.error.is_none()
    }
}

/// The answer about some files; one file's JSON document is BuildKit's, several are a list of them.
pub(crate) fn answer(checked: &[Checked], format: Format) -> String {
    match (format, checked) {
        (Format::Sarif, _) => format!("{:#}\n", sarif::document(checked)),
        (Format::Json, [only]) => format!("{:#}\n", document(only)),
        (Format::Json, _) => {
            format!("{:#}\n", Value::Array(checked.iter().map(document).collect()))
        }
        (Format::Text, _) => text(checked),
    }
}

fn document(checked: &Checked) -> Value {
    let source = &checked.source;
    let warnings = checked.warnings.iter().map(|warning| {
        let rule = rules::find(warning.code);
        let mut document = json!({
            "ruleName": warning.code,
            "description": rule.map(|rule| rule.description).unwrap_or_default(),
            "detail": warning.message,
            "location": location(source, warning.span.unwrap_or_default()),
        });
        if let Some(url) = rule.and_then(rules::Rule::url) {
            document["url"] = url.into();
        }
        document
    });
    let mut document = json!({
        "warnings": warnings.collect::<Vec<_>>(),
        "sources": [{
            "filename": source.name(),
            "language": "Dockerfile",
            "data": encoded(source),
        }],
    });
    if let Some(error) = &checked.error {
        document["buildError"] = json!({
            "message": error.message,
            "location": location(source, error.span.unwrap_or_default()),
        });
    }
    document
}

fn text(checked: &[Checked]) -> String {
    let count: usize = checked.iter().map(|checked| checked.warnings.len()).sum();
    let mut text = String::new();
    if checked.iter().all(|checked| checked.error.is_none()) {
        text = match count {
            0 => "Check complete, no warnings found.\n".to_owned(),
            1 => "Check complete, 1 warning has been found!\n".to_owned(),
            _ => format!("Check complete, {count} warnings have been found!\n"),
        };
    }
    for checked in checked {
        for warning in &checked.warnings {
            let _infallible = write!(text, "\nWARNING: {}", warning.code);
            if let Some(url) = rules::find(warning.code).and_then(rules::Rule::url) {
                let _infallible = write!(text, " - {url}");
            }
            let place = excerpt(&checked.source, warning.span.unwrap_or_default());
            let _infallible = write!(text, "\n{}\n{place}", warning.message);
        }
        if let Some(error) = &checked.error {
            let place = excerpt(&checked.source, error.span.unwrap_or_default());
            let _infallible = write!(text, "\nERROR: {}\n{place}", error.message);
            if let Some(help) = &error.help {
                let _infallible = writeln!(text, "help: {help}");
            }
        }
    }
    text
}
