//! `kiln du`: what uses space. Its options and fields are those of `docker buildx du`.

use clap::{Args, ValueEnum};
use kiln_cache::{UsageKind, UsageRow};
use kiln_image::history::rfc3339 as time;
use serde_json::json;

use crate::command::{ago, open_store, print, size, table};
use crate::failure::{Failure, chain};
use crate::gc;
use crate::settings::Settings;

/// How rows are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line each.
    #[default]
    Table,
    /// A paragraph each.
    Pretty,
    /// A JSON document each, one a line.
    Json,
}

/// Tell what uses space.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// Only things of which this holds, as for kiln prune
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,

    /// The same as --format pretty
    #[arg(long)]
    verbose: bool,

    /// How to write it
    #[arg(long, value_enum, default_value_t, conflicts_with = "verbose")]
    format: Format,
}

/// What rows are told for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    /// They are there.
    There,
    /// They went.
    Gone,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let chosen = gc::filters(&options.filter)?;
    let store = open_store(settings)?;
    let mut rows = store.disk_usage().map_err(|e| Failure::environment(chain(&e)))?;
    rows.retain(|row| gc::chosen(&chosen, row));
    rows.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let format = if options.verbose { Format::Pretty } else { options.format };
    match format {
        Format::Json => print(&rows.iter().map(document).collect::<String>()),
        Format::Pretty => print(&(pretty(&rows) + &totals(&rows))),
        Format::Table => print(&(table_of(&rows, Rows::There) + &totals(&rows))),
    }
}

/// What `prune` would have to be asked for is reclaimable.
fn reclaimable(row: &UsageRow) -> bool {
    !row.in_use
}

/// One line a row.
pub(super) fn table_of(rows: &[UsageRow], told: Rows) -> String {
    if rows.is_empty() && told == Rows::Gone {
        return String::new();
    }
    let head = ["ID", "KIND", "RECLAIMABLE", "SIZE", "LAST ACCESSED", "DESCRIPTION"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let mark = if row.mutable() && row.kind != UsageKind::Other { "*" } else { "" };
        lines.push(vec![
            format!("{}{mark}", short(&row.id)),
            row.kind.as_str().to_owned(),
            reclaimable(row).to_string(),
            size(row.size),
            ago(row.last_used),
            row.description.chars().take(48).collect::<String>().replace(char::is_control, " "),
        ]);
    }
    table(&lines)
}

/// Long enough to name a thing with `--filter id=`.
fn short(id: &str) -> &str {
    match id.split_once(':') {
        Some((_, hex)) => id.get(..id.len() - hex.len() + hex.len().min(20)).unwrap_or(id),
        None => id,
    }
}

/// One paragraph a row.
pub(super) fn pretty(rows: &[UsageRow]) -> String {
    let mut text = String::new();
    for row in rows {
        let mut line = |name: &str, value: &str| {
            if !value.is_empty() {
                text.push_str(&format!("{:<15}{value}\n", format!("{name}:")));
            }
        };
        line("ID", &row.id);
        line("Parents", &row.parents.join(","));
        line("Created at", &time(row.created));
        line("Mutable", &row.mutable().to_string());
        line("Reclaimable", &reclaimable(row).to_string());
        line("Shared", &row.shared.to_string());
        line("Size", &size(row.size));
        line("Description", &row.description.replace(char::is_control, " "));
        line("Last used", &ago(row.last_used));
        line("Type", row.record_type());
        line("Kind", row.kind.as_str());
        text.push('\n');
    }
    text
}

/// The fields of buildx (`commands/diskusage.go`), and Kiln's own kind.
fn document(row: &UsageRow) -> String {
    let document = json!({
        "CreatedAt": time(row.created),
        "Description": row.description,
        "ID": row.id,
        "Kind": row.kind.as_str(),
        "LastUsedAt": time(row.last_used),
        "Mutable": row.mutable(),
        "Parents": row.parents,
        "Reclaimable": reclaimable(row),
        "Shared": row.shared,
        "Size": row.size,
        "Type": row.record_type(),
    });
    format!("{document}\n")
}

fn totals(rows: &[UsageRow]) -> String {
    let sum = |wanted: &dyn Fn(&UsageRow) -> bool| {
        size(rows.iter().filter(|row| wanted(row)).map(|row| row.size).sum())
    };
    format!(
        "Shared:\t\t{}\nPrivate:\t{}\nReclaimable:\t{}\nTotal:\t\t{}\n",
        sum(&|row| row.shared),
        sum(&|row| !row.shared),
        sum(&reclaimable),
        sum(&|_| true),
    )
}
