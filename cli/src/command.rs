//! The table of commands.

mod builds;
mod cache;
mod cp;
mod debug;
mod doctor;
mod du;
mod explain;
mod fsck;
mod history;
mod images;
mod import;
mod inspect;
mod lint;
mod logs;
mod prune;
mod pull;
mod push;
mod rmi;
pub(crate) mod run;
mod tag;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use kiln_parser::platform::Platform;

use crate::build::options::BuildOptions;
use crate::failure::{Failure, chain};
use crate::isolation::{self, Isolation};
use crate::settings::Settings;
use crate::snapshotter::Snapshotter;

/// Build OCI images from Dockerfiles: one binary, no daemon
#[derive(Parser, Debug)]
#[command(name = "kiln", version, about, disable_help_subcommand = true, args_override_self = true)]
struct CommandLine {
    /// Folder of the store (default: /var/lib/kiln for root, $XDG_DATA_HOME/kiln for others)
    #[arg(long, global = true, value_name = "FOLDER", env = "KILN_ROOT")]
    root: Option<PathBuf>,

    /// How far steps are from the machine: the best there is, or exactly this one
    #[arg(
        long,
        global = true,
        value_name = "TIER",
        env = "KILN_ISOLATION",
        default_value = "auto"
    )]
    isolation: Isolation,

    /// How the files of steps are put together: overlay, copies where it cannot be mounted, or exactly one
    #[arg(
        long,
        global = true,
        value_name = "auto|overlay|fuse-overlayfs|copy",
        env = "KILN_SNAPSHOTTER",
        default_value = "auto",
        hide_possible_values = true
    )]
    snapshotter: Snapshotter,

    /// Ask nothing of other machines: what is not in the store is an error; steps have no network
    #[arg(
        long,
        global = true,
        env = "KILN_OFFLINE",
        value_parser = clap::builder::FalseyValueParser::new()
    )]
    offline: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Build an image from a Dockerfile
    Build(Box<BuildOptions>),
    /// Check Dockerfiles for mistakes
    Lint(lint::Options),
    /// Make an image from the archive of a root file system
    Import(import::Options),
    /// List the images of the store
    Images(images::Options),
    /// Fetch an image from its registry into the store
    Pull(pull::Options),
    /// Send an image of the store to its registry
    Push(push::Options),
    /// Show manifest and configuration of an image
    Inspect(inspect::Options),
    /// Show how an image was made
    History(history::Options),
    /// Give an image another name
    Tag(tag::Options),
    /// Remove names of images from the store
    Rmi(rmi::Options),
    /// Run a command in an image
    Run(Box<run::Options>),
    /// Say what this machine lacks for builds, and what would give it
    Doctor(doctor::Options),
    /// List the builds of this store, or the steps of one
    Builds(builds::Options),
    /// Show what the steps of a build wrote
    Logs(logs::Options),
    /// Say why steps of a build were not cached
    Explain(explain::Options),
    /// Open a shell in the state that a failed step left
    Debug(Box<debug::Options>),
    /// Copy files out of a step of a build
    Cp(cp::Options),
    /// Look whether everything in the store is as it should be
    Fsck(fsck::Options),
    /// Look into the cache
    Cache(cache::Options),
    /// Remove what no image and no recent build needs
    Prune(prune::Options),
    /// Tell what uses space
    Du(du::Options),
}

/// Reads the command line and does what it says.
///
/// # Errors
/// Whatever keeps the command from doing that.
pub(crate) fn run() -> Result<(), Failure> {
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) if error.use_stderr() => {
            let text = error.to_string();
            return Err(Failure::usage(text.trim_start_matches("error: ").trim_end()));
        }
        Err(help) => return print(&help.to_string()),
    };
    crate::signal::outlive_file_limits()
        .map_err(|e| Failure::io("install", "the signal handler", &e))?;
    let mut settings = Settings::load(line.root.as_deref(), line.offline)?;
    settings.snapshotter = line.snapshotter;
    if !matches!(line.command, Command::Lint(_)) {
        settings.isolation = Some(isolation::enter(line.isolation)?);
    }
    match line.command {
        Command::Build(options) => crate::build::build(&options, &settings),
        Command::Lint(options) => lint::run(&options),
        Command::Import(options) => import::run(&options, &settings),
        Command::Images(options) => images::run(&options, &settings),
        Command::Pull(options) => pull::run(&options, &settings),
        Command::Push(options) => push::run(&options, &settings),
        Command::Inspect(options) => inspect::run(&options, &settings),
        Command::History(options) => history::run(&options, &settings),
        Command::Tag(options) => tag::run(&options, &settings),
        Command::Rmi(options) => rmi::run(&options, &settings),
        Command::Run(options) => run::run(&options, &settings),
        Command::Doctor(options) => doctor::run(&options, &settings),
        Command::Builds(options) => builds::run(&options, &settings),
        Command::Logs(options) => logs::run(&options, &settings),
        Command::Explain(options) => explain::run(&options, &settings),
        Command::Debug(options) => debug::run(&options, &settings),
        Command::Cp(options) => cp::run(&options, &settings),
        Command::Fsck(options) => fsck::run(&options, &settings),
        Command::Cache(options) => cache::run(&options, &settings),
        Command::Prune(options) => prune::run(&options, &settings),
        Command::Du(options) => du::run(&options, &settings),
    }
}

/// Writes data to standard output. A reader that went away wanted no more of it.
///
/// # Errors
/// Standard output cannot be written for another reason.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::io("write to", "standard output", &error))
        }
        _ => Ok(()),
    }
}

/// Writes to standard error; if that is closed, there is nobody to tell.
pub(crate) fn print_error(text: &str) {
    let _nobody_reads = io::stderr().lock().write_all(text.as_bytes());
}

fn open_store(settings: &Settings) -> Result<kiln_cache::Store, Failure> {
    kiln_cache::Store::open(&settings.root).map_err(|e| Failure::environment(chain(&e)))
}

/// `--platform` of one image; this machine's where none is named.
fn platform(option: Option<&str>) -> Result<Platform, Failure> {
    let Some(text) = option else { return Ok(Platform::host()) };
    text.parse().map_err(|e| {
        Failure::usage(format_args!("invalid --platform: {e}")).hint("for example linux/amd64")
    })
}

/// Rows with columns as wide as their widest cell.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|at| width(at).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// `12.3MB`, in units of 1000 as Docker prints sizes.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" {
                format!("{value:.0}{unit}")
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1}TB")
}

/// `3 minutes ago`; of a time in seconds since 1970.
pub(crate) fn ago(time: i64) -> String {
    span(now().saturating_sub(time))
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}

/// An age in seconds, in the largest unit of which there is at least one.
fn span(seconds: i64) -> String {
    let units = [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    let unit = units.into_iter().find(|(length, _)| seconds >= *length);
    let Some((length, name)) = unit else { return "just now".to_owned() };
    let count = seconds / length;
    format!("{count} {name}{} ago", if count == 1 { "" } else { "s" })
}

/// Which of the store's images a name means, or a sentence that says there is none.
fn stored(
    store: &kiln_cache::Store,
    name: &str,
) -> Result<(String, kiln_cache::Descriptor), Failure> {
    let full = crate::wire::export::full_name(name)?;
    let found = store.resolve(&full).map_err(|e| Failure::environment(chain(&e)))?;
    let root = found.ok_or_else(|| {
        Failure::input(format_args!("no image `{name}` in the store"))
            .hint("`kiln images` lists them")
    })?;
    Ok((full, root))
}

/// The short form of a full name: `docker.io/library/` and `:latest` are understood.
fn familiar(full: &str) -> String {
    full.parse::<kiln_image::reference::Reference>()
        .map_or_else(|_| full.to_owned(), |reference| reference.familiar())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::{CommandLine, size, span, table};

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn tables_align() {
        let rows =
            vec![vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), "c".to_owned()]];
        assert_eq!(table(&rows), "a      b\nlong   c\n");
    }

    #[test]
    fn ages_are_round() {
        let shown = [0, 1, 119, 7_200, 260_000].map(span);
        let expect = ["just now", "1 second ago", "1 minute ago", "2 hours ago", "3 days ago"];
        assert_eq!(shown, expect);
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!((size(12).as_str(), size(1_234_000).as_str()), ("12B", "1.2MB"));
    }
}
