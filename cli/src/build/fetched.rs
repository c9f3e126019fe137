//! Contexts that are fetched before the Dockerfile is known: a git repository, an archive by URL or on
//! standard input; or nothing but a Dockerfile by one of these ways.

use std::io::{self, Read, Write};

use kiln_cache::{Kind, Layers};
use kiln_image::unpack::is_archive;
use kiln_parser::git::GitRef;
use kiln_parser::graph::HttpOp;
use kiln_parser::lower::NamedContext;
use kiln_solver::outcome::Outcome;

use super::engine::Engine;
use super::inputs::read_text;
use crate::failure::{Failure, chain};
use crate::wire::remote::STDIN;

/// What a file of a context is called that is no archive (BuildKit's name).
const FILE_NAME: &str = "context";

/// What was fetched.
pub(super) enum Fetched {
    /// Files.
    Tree {
        /// What they are to the language.
        context: NamedContext,
        /// The files.
        files: Layers,
        /// When it was made, in seconds since 1970.
        time: Option<i64>,
        /// Keeps the files in the store while the build runs.
        _held: Outcome,
    },
    /// A Dockerfile.
    Dockerfile {
        /// Its text.
        text: String,
        /// The context that goes with it: the file itself, where it is from the network.
        context: Option<NamedContext>,
    },
}

impl Fetched {
    /// The context as the language sees it.
    pub(super) fn context(&self) -> NamedContext {
        match self {
            Self::Tree { context, .. } => context.clone(),
            Self::Dockerfile { context, .. } => context.clone().unwrap_or_default(),
        }
    }

    /// When it was made.
    pub(super) fn time(&self) -> Option<i64> {
        match self {
            Self::Tree { time, .. } => *time,
            Self::Dockerfile { .. } => None,
        }
    }
}

/// A git repository.
///
/// # Errors
/// It cannot be fetched.
pub(super) fn from_git(
    mut git: GitRef,
    build_args: &[String],
    engine: &Engine<'_>,
) -> Result<Fetched, Failure> {
    for arg in build_args {
        match arg.split_once('=') {
            Some(("BUILDKIT_CONTEXT_KEEP_GIT_DIR", "1" | "t" | "T" | "true" | "TRUE" | "True")) => {
                git.keep_git_dir = true;
            }
            Some(("SOURCE_DATE_EPOCH", value)) if !value.is_empty() => git.commit_times = true,
            _ => {}
        }
    }
    let dated = git.commit_times;
    let context = NamedContext::Git(git);
    let (files, held) = engine.fetch(&context)?;
    let time = if dated { newest(&files) } else { None };
    Ok(Fetched::Tree { context, files, time, _held: held })
}

/// The newest regular file.
fn newest(files: &Layers) -> Option<i64> {
    files
        .walk(std::path::Path::new(""))
        .into_iter()
        .filter(|(_, found)| matches!(found.entry.kind, Kind::File { .. }))
        .map(|(_, found)| found.entry.metadata.mtime.secs)
        .max()
}

/// An archive by URL; anything else that a URL gives is the Dockerfile.
///
/// # Errors
/// It cannot be fetched.
pub(super) fn from_url(url: &str, engine: &Engine<'_>) -> Result<Fetched, Failure> {
    let file = HttpOp { url: url.to_owned(), filename: FILE_NAME.to_owned(), checksum: None };
    from_file(file, engine)
}

/// An archive on standard input; anything else is the Dockerfile.
///
/// # Errors
/// It cannot be read.
pub(super) fn from_stdin(input: &mut impl Read, engine: &Engine<'_>) -> Result<Fetched, Failure> {
    let failed = |e: &io::Error| Failure::io("read", "standard input", e);
    let mut writer = engine.store.blob_writer().map_err(|e| Failure::environment(chain(&e)))?;
    io::copy(input, &mut writer).and_then(|_| writer.flush()).map_err(|e| failed(&e))?;
    let blob = writer.commit(None).map_err(|e| Failure::environment(chain(&e)))?;
    let file = HttpOp {
        url: STDIN.to_owned(),
        filename: FILE_NAME.to_owned(),
        checksum: Some(blob.digest.to_string()),
    };
    from_file(file, engine)
}

fn from_file(file: HttpOp, engine: &Engine<'_>) -> Result<Fetched, Failure> {
    let found = engine.remotes.download(&file).map_err(|error| Failure::input(error.message))?;
    let opened =
        engine.store.open_blob(&found.digest).map_err(|e| Failure::environment(chain(&e)))?;
    let mut opened =
        opened.ok_or_else(|| Failure::environment("the context is not in the store"))?;
    let archive = is_archive(&opened).map_err(|e| Failure::io("read", &file.url, &e))?;
    if !archive {
        let name = if file.url == STDIN { "standard input" } else { file.url.as_str() };
        let text = read_text(&mut opened, name)?;
        let context =
            (file.url != STDIN).then_some(NamedContext::File { file: file.clone(), unpack: false });
        return Ok(Fetched::Dockerfile { text, context });
    }
    let context = NamedContext::File { file, unpack: true };
    let (files, held) = engine.fetch(&context)?;
    let time = found.last_modified.or_else(|| newest(&files));
    Ok(Fetched::Tree { context, files, time, _held: held })
}

/// A Dockerfile by URL.
///
/// # Errors
/// It cannot be fetched, or is no text.
pub(super) fn text(url: &str, engine: &Engine<'_>) -> Result<String, Failure> {
    let file = HttpOp { url: url.to_owned(), filename: FILE_NAME.to_owned(), checksum: None };
    let found = engine.remotes.download(&file).map_err(|error| Failure::input(error.message))?;
    let opened =
        engine.store.open_blob(&found.digest).map_err(|e| Failure::environment(chain(&e)))?;
    let mut opened = opened.ok_or_else(|| Failure::environment("the file is not in the store"))?;
    read_text(&mut opened, url)
}
