//! Which targets a Dockerfile has.

use kiln_parser::outline::TargetInfo;
use kiln_parser::source::Source;
use serde_json::{Value, json};

use super::{Format, encoded, location};
use crate::command::table;

/// The answer.
pub(crate) fn answer(source: &Source, targets: &[TargetInfo], format: Format) -> String {
    if format == Format::Json {
        let list: Vec<Value> = targets.iter().map(|target| document(source, target)).collect();
        return format!("{:#}\n", json!({"targets": list, "sources": [encoded(source)]}));
    }
    let rows = targets.iter().map(|target| {
        let name = match (target.name.as_str(), target.default) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        vec![name, target.description.clone()]
    });
    let head = vec!["TARGET".to_owned(), "DESCRIPTION".to_owned()];
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn document(source: &Source, target: &TargetInfo) -> Value {
    let mut document = json!({"location": location(source, target.span)});
    let texts = [
        ("name", &target.name),
        ("description", &target.description),
        ("base", &target.base),
        ("platform", &target.platform),
    ];
    for (key, value) in texts {
        if !value.is_empty() {
            document[key] = value.as_str().into();
        }
    }
    if target.default {
        document["default"] = true.into();
    }
    document
}
