//! What the target can be given: arguments, secrets, agents.

use kiln_parser::outline::{Outline, OutlineInput};
use kiln_parser::source::Source;
use serde_json::{Value, json};

use super::{Format, encoded, location};
use crate::command::table;

/// The answer.
pub(crate) fn answer(source: &Source, outline: &Outline, format: Format) -> String {
    if format == Format::Json {
        format!("{:#}\n", document(source, outline))
    } else {
        text(outline)
    }
}

fn document(source: &Source, outline: &Outline) -> Value {
    let mut document = json!({});
    let mut put = |key: &str, value: Value| {
        let empty = value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty);
        if !empty {
            document[key] = value;
        }
    };
    let arguments = outline.arguments.iter().map(|argument| {
        let mut shown = json!({"name": argument.name, "location": location(source, argument.span)});
        for (key, value) in [("description", &argument.description), ("value", &argument.value)] {
            if !value.is_empty() {
                shown[key] = value.as_str().into();
            }
        }
        shown
    });
    let inputs = |list: &[OutlineInput]| -> Vec<Value> {
        let show = |input: &OutlineInput| {
            let mut shown = json!({"name": input.name, "location": location(source, input.span)});
            if input.required {
                shown["required"] = true.into();
            }
            shown
        };
        list.iter().map(show).collect()
    };
    put("name", outline.name.as_str().into());
    put("description", outline.description.as_str().into());
    put("args", arguments.collect::<Vec<_>>().into());
    put("secrets", inputs(&outline.secrets).into());
    put("ssh", inputs(&outline.agents).into());
    put("sources", json!([encoded(source)]));
    document
}

fn text(outline: &Outline) -> String {
    let mut text = String::new();
    if !outline.name.is_empty() || !outline.description.is_empty() {
        let name = if outline.name.is_empty() { "(default)" } else { &outline.name };
        text.push_str(&format!("TARGET:      {name}\n"));
        if !outline.description.is_empty() {
            text.push_str(&format!("DESCRIPTION: {}\n", outline.description));
        }
        text.push('\n');
    }
    let mut list = |head: &[&str], rows: Vec<Vec<String>>| {
        if rows.is_empty() {
            return;
        }
        let head = head.iter().map(|&cell| cell.to_owned()).collect();
        text.push_str(&table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()));
        text.push('\n');
    };
    let arguments = outline.arguments.iter().map(|argument| {
        vec![argument.name.clone(), argument.value.clone(), argument.description.clone()]
    });
    list(&["BUILD ARG", "VALUE", "DESCRIPTION"], arguments.collect());
    let inputs = |list: &[OutlineInput]| -> Vec<Vec<String>> {
        let required = |input: &OutlineInput| if input.required { "true" } else { "" }.to_owned();
        list.iter().map(|input| vec![input.name.clone(), required(input)]).collect()
    };
    list(&["SECRET", "REQUIRED"], inputs(&outline.secrets));
    list(&["SSH", "REQUIRED"], inputs(&outline.agents));
    text
}
