//! `kiln builds`: the history.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::command::{ago, open_store, print, table};
use crate::failure::Failure;
use crate::history::{self, Build};
use crate::settings::Settings;

/// How lists are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// List the builds of this store, or the steps of one.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// A build, by the beginning of its name: list its steps
    build: Option<String>,
    /// So many of the newest builds
    #[arg(short, long, value_name = "N", default_value_t = 20)]
    last: usize,
    /// text or json
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    format: Format,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let store = open_store(settings)?;
    if let Some(name) = &options.build {
        let build = history::find(&store, Some(name))?;
        let outcome = build.outcome(&store)?;
        return match options.format {
            Format::Json => print(&format!("{:#}\n", document(&build, &outcome))),
            Format::Text => print(&steps(&build)),
        };
    }
    let mut builds = Vec::new();
    for build in history::newest(&store, options.last)? {
        let outcome = build.outcome(&store)?;
        builds.push((build, outcome));
    }
    match options.format {
        Format::Json => {
            let all: Vec<Value> = builds.iter().map(|(b, outcome)| document(b, outcome)).collect();
            print(&format!("{:#}\n", Value::Array(all)))
        }
        Format::Text => {
            let header = ["BUILD", "STARTED", "TIME", "OUTCOME", "STEPS", "WHAT"];
            let mut rows = vec![header.map(str::to_owned).to_vec()];
            rows.extend(builds.iter().map(|(build, outcome)| row(build, outcome)));
            print(&table(&rows))
        }
    }
}

fn document(build: &Build, outcome: &str) -> Value {
    let mut document = json!({
        "id": build.row.id.as_str(),
        "started_ms": build.row.started_ms,
        "ended_ms": build.row.ended_ms,
    });
    if let (Value::Object(known), Ok(Value::Object(more))) =
        (&mut document, serde_json::to_value(&build.document))
    {
        known.extend(more);
    }
    document["outcome"] = outcome.into();
    document
}

fn row(build: &Build, outcome: &str) -> Vec<String> {
    let document = &build.document;
    let cached = document.steps.iter().filter(|step| step.status == "cached").count();
    let what = document.names.first().unwrap_or(&document.context);
    let time = build.row.ended_ms.map(|ended| seconds(ended - build.row.started_ms));
    vec![
        build.row.id.to_string(),
        ago(build.row.started_ms / 1000),
        time.unwrap_or_else(|| "-".to_owned()),
        outcome.to_owned(),
        format!("{} ({cached} cached)", document.steps.len()),
        super::familiar(what),
    ]
}

fn steps(build: &Build) -> String {
    let mut rows = vec![["STEP", "STATUS", "TIME", "NAME"].map(str::to_owned).to_vec()];
    for step in &build.document.steps {
        let time = step.duration_ms.map(|ms| seconds(i64::try_from(ms).unwrap_or(i64::MAX)));
        let name = step.name.lines().next().unwrap_or_default().to_owned();
        let time = time.unwrap_or_else(|| "-".to_owned());
        rows.push(vec![format!("#{}", step.number), step.status.clone(), time, name]);
    }
    table(&rows)
}

fn seconds(milliseconds: i64) -> String {
    format!("{:.1}s", milliseconds as f64 / 1000.0)
}
