//! COPY and ADD.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::flags::{Flags, Kind};
use super::{Context, Word};
use crate::diagnostic::Diagnostic;
use crate::lines::{Heredoc, heredoc_word};

/// A source of COPY or ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileSource {
    /// A path, pattern or URL.
    Path(Word),
    /// An inline document.
    Inline(InlineSource),
}

/// `<<NAME` as a source: a file of that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineSource {
    /// The word as written, `<<NAME`.
    pub word: Word,
    /// The document.
    pub document: Arc<Heredoc>,
}

/// COPY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Sources, in order.
    pub sources: Vec<FileSource>,
    /// Destination.
    pub dest: Word,
    /// `--from`.
    pub from: Option<Word>,
    /// `--chown`.
    pub chown: Option<Word>,
    /// `--chmod`.
    pub chmod: Option<Word>,
    /// `--link`.
    pub link: bool,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude` patterns.
    pub exclude: Vec<Word>,
}

/// ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Add {
    /// Sources, in order.
    pub sources: Vec<FileSource>,
    /// Destination.
    pub dest: Word,
    /// `--chown`.
    pub chown: Option<Word>,
    /// `--chmod`.
    pub chmod: Option<Word>,
    /// `--link`.
    pub link: bool,
    /// `--exclude` patterns.
    pub exclude: Vec<Word>,
    /// `--keep-git-dir`.
    pub keep_git_dir: Option<bool>,
    /// `--checksum`.
    pub checksum: Option<Word>,
    /// `--unpack`; its default depends on the source.
    pub unpack: Option<bool>,
}

const COPY_FLAGS: &[(&str, Kind)] = &[
    ("chown", Kind::Text),
    ("from", Kind::Text),
    ("chmod", Kind::Text),
    ("link", Kind::Bool),
    ("exclude", Kind::List),
    ("parents", Kind::Bool),
];

const ADD_FLAGS: &[(&str, Kind)] = &[
    ("chown", Kind::Text),
    ("chmod", Kind::Text),
    ("link", Kind::Bool),
    ("keep-git-dir", Kind::Bool),
    ("checksum", Kind::Text),
    ("unpack", Kind::Bool),
    ("exclude", Kind::List),
];

pub(super) fn copy(context: &Context<'_>) -> Result<Copy, Diagnostic> {
    let words = arguments(context)?;
    let flags = Flags::read(context, COPY_FLAGS)?;
    let (sources, dest) = sources_and_dest(context, words)?;
    Ok(Copy {
        sources,
        dest,
        from: flags.text("from"),
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.switch("link").unwrap_or(false),
        parents: flags.switch("parents").unwrap_or(false),
        exclude: flags.list("exclude"),
    })
}

pub(super) fn add(context: &Context<'_>) -> Result<Add, Diagnostic> {
    let words = arguments(context)?;
    let flags = Flags::read(context, ADD_FLAGS)?;
    let (sources, dest) = sources_and_dest(context, words)?;
    Ok(Add {
        sources,
        dest,
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.switch("link").unwrap_or(false),
        exclude: flags.list("exclude"),
        keep_git_dir: flags.switch("keep-git-dir"),
        checksum: flags.text("checksum"),
        unpack: flags.switch("unpack"),
    })
}

fn arguments(context: &Context<'_>) -> Result<Vec<Word>, Diagnostic> {
    let words =
        if context.heredocs().is_empty() { context.list_or_json()? } else { heredoc_list(context) };
    if words.len() < 2 {
        let message = format!(
            "{} requires at least two arguments, but only one was provided. Destination could not be determined",
            context.name
        );
        return Err(context
            .error(message)
            .help(format!("write {} SOURCE… DESTINATION", context.name)));
    }
    Ok(words)
}

/// `<< EOF` is one word where a document belongs to it.
fn heredoc_list(context: &Context<'_>) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    for word in context.list() {
        match words.last_mut() {
            Some(last) if matches!(last.text.as_str(), "<<" | "<<-") => {
                last.text.push_str(&word.text);
                last.span = last.span.to(word.span);
            }
            _ => words.push(word),
        }
    }
    words
}

fn sources_and_dest(
    context: &Context<'_>,
    mut words: Vec<Word>,
) -> Result<(Vec<FileSource>, Word), Diagnostic> {
    let dest = words.pop().unwrap_or_default();
    if heredoc_word(&dest.text).is_some() {
        let message = format!("{} cannot accept a heredoc as a destination", context.name);
        return Err(Diagnostic::error(dest.span, message).help("name a path behind the heredoc"));
    }
    // The last document of a name is the one of all words that have it.
    let documents: BTreeMap<&str, Arc<Heredoc>> = context
        .heredocs()
        .iter()
        .map(|document| (document.name.as_str(), Arc::new(document.clone())))
        .collect();
    let sources = words
        .into_iter()
        .map(|word| {
            let named = heredoc_word(&word.text);
            match named.and_then(|mark| documents.get(mark.name.as_str())) {
                Some(document) => {
                    FileSource::Inline(InlineSource { word, document: Arc::clone(document) })
                }
                None => FileSource::Path(word),
            }
        })
        .collect();
    Ok((sources, dest))
}
