//! Findings in the Static Analysis Results Interchange Format 2.1.0 (OASIS), which code hosts show
//! beside the lines of a change.

use kiln_parser::diagnostic::Diagnostic;
use kiln_parser::lint::rules;
use kiln_parser::source::Source;
use serde_json::{Value, json};

use super::check::Checked;

/// The id of what keeps a file from being built.
const ERROR_ID: &str = "BuildError";

pub(super) fn document(checked: &[Checked]) -> Value {
    let described = rules::RULES.iter().map(|rule| {
        let mut described =
            json!({"id": rule.name, "shortDescription": {"text": rule.description}});
        if let Some(url) = rule.url() {
            described["helpUri"] = url.into();
        }
        described
    });
    let broken = json!({
        "id": ERROR_ID,
        "shortDescription": {"text": "The Dockerfile cannot be built"},
    });
    let results = checked.iter().flat_map(|checked| {
        let source = &checked.source;
        let warnings =
            checked.warnings.iter().map(|found| result(source, found, found.code, "warning"));
        let error = checked.error.iter().map(|found| result(source, found, ERROR_ID, "error"));
        warnings.chain(error).collect::<Vec<_>>()
    });
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "kiln",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": described.chain([broken]).collect::<Vec<_>>(),
            }},
            "results": results.collect::<Vec<_>>(),
        }],
    })
}

fn result(source: &Source, found: &Diagnostic, id: &str, level: &str) -> Value {
    let span = found.span.unwrap_or_default();
    let (start, end) = (source.position(span.start), source.position(span.end));
    json!({
        "ruleId": id,
        "level": level,
        "message": {"text": found.message},
        "locations": [{"physicalLocation": {
            "artifactLocation": {"uri": source.name()},
            "region": {
                "startLine": start.line,
                "startColumn": start.column,
                "endLine": end.line,
                "endColumn": end.column,
            },
        }}],
    })
}
