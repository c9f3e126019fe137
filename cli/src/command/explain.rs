//! `kiln explain`: why the steps of a build ran.

use clap::Args;
use serde_json::json;

use super::builds::Format;
use crate::command::{open_store, print};
use crate::explain::details;
use crate::failure::Failure;
use crate::history::{self, StepDocument};
use crate::settings::Settings;

/// Say why steps of a build were not cached.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The step: its number, or the beginning of its instruction (default: all)
    step: Option<String>,
    /// The build, by the beginning of its name (default: the newest)
    #[arg(long, value_name = "BUILD")]
    build: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    format: Format,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let store = open_store(settings)?;
    let build = history::find(&store, options.build.as_deref())?;
    let steps: Vec<&StepDocument> = match &options.step {
        Some(step) => vec![build.step(Some(step))?],
        None => build.document.steps.iter().collect(),
    };
    match options.format {
        Format::Json => {
            let steps: Vec<_> = steps
                .iter()
                .map(|step| {
                    json!({
                        "number": step.number, "name": step.name, "status": step.status,
                        "key": step.key, "why": step.why,
                    })
                })
                .collect();
            print(&format!("{:#}\n", json!({"build": build.row.id.as_str(), "steps": steps})))
        }
        Format::Text => print(&steps.iter().map(|step| text(step)).collect::<String>()),
    }
}

fn text(step: &StepDocument) -> String {
    let name = step.name.lines().next().unwrap_or_default();
    let mut text = format!("#{} {name}\n", step.number);
    match &step.why {
        Some(why) => {
            text.push_str(&format!("   {}: {}\n", step.status, why.line));
            for line in details(why) {
                text.push_str(&format!("     {line}\n"));
            }
        }
        None => text.push_str(&format!("   {}\n", step.status)),
    }
    text
}
