//! COPY and ADD.

use super::stage::Stage;
use super::stages::Place;
use crate::diagnostic::Diagnostic;
use crate::expand::{Quotes, expand};
use crate::git::GitRef;
use crate::graph::{
    Chmod, CopyFrom, CopyOp, CopySource, Graph, HttpOp, InlineFile, Input, Op, Unpack,
};
use crate::instruction::{Add, Copy, FileSource, InlineSource, Word};
use crate::source::Span;
use crate::tree::Statement;

/// What COPY and ADD have in common.
struct Request<'r> {
    word: &'static str,
    sources: &'r [FileSource],
    dest: &'r Word,
    chown: Option<&'r Word>,
    chmod: Option<&'r Word>,
    exclude: &'r [Word],
    link: bool,
    parents: bool,
}

pub(super) fn lower_copy(
    stage: &mut Stage<'_, '_>,
    copy: &Copy,
    statement: &Statement,
    graph: &mut Graph,
) -> Result<(), Diagnostic> {
    let from = match &copy.from {
        None => stage.context("context", statement.span, graph),
        Some(word) => match stage.plan.place_of(word, true)? {
            Place::Stage(index) => {
                CopyFrom::Snapshot(stage.stage_snapshot(index, &word.text, word.span)?)
            }
            Place::Folder(name) => stage.context(&name, word.span, graph),
            Place::Empty => CopyFrom::Snapshot(Input::Scratch),
            Place::Image(key) => CopyFrom::Snapshot(stage.image(&key, word.span, graph)?),
        },
    };
    let request = Request {
        word: "COPY",
        sources: &copy.sources,
        dest: &copy.dest,
        chown: copy.chown.as_ref(),
        chmod: copy.chmod.as_ref(),
        exclude: &copy.exclude,
        link: copy.link,
        parents: copy.parents,
    };
    let mut paths = Vec::new();
    for source in copy.sources.iter().filter_map(path) {
        let path = stage.expand(source)?;
        if is_url(&path) {
            return Err(remote_error("source can't be a URL for COPY", source.span));
        }
        if GitRef::parse(&path, false).is_some() {
            return Err(remote_error("source can't be a git ref for COPY", source.span));
        }
        if copy.from.is_none() {
            stage.check_ignored("Copy", &path, source.span);
        }
        paths.push(CopySource { from: from.clone(), path, unpack: Unpack::Never });
    }
    finish(stage, &request, paths, statement, graph)
}

fn remote_error(message: &str, span: Span) -> Diagnostic {
    Diagnostic::error(span, message).help("ADD takes URLs and git repositories")
}

pub(super) fn lower_add(
    stage: &mut Stage<'_, '_>,
    add: &Add,
    statement: &Statement,
    graph: &mut Graph,
) -> Result<(), Diagnostic> {
    let request = Request {
        word: "ADD",
        sources: &add.sources,
        dest: &add.dest,
        chown: add.chown.as_ref(),
        chmod: add.chmod.as_ref(),
        exclude: &add.exclude,
        link: add.link,
        parents: false,
    };
    let words: Vec<&Word> = add.sources.iter().filter_map(path).collect();
    let checksum = match &add.checksum {
        None => None,
        Some(word) => Some(checksum(stage, word, &words)?),
    };
    let mut paths = Vec::new();
    for word in words {
        let path = stage.expand(word)?;
        paths.push(add_source(stage, add, path, checksum.as_deref(), word.span, graph)?);
    }
    finish(stage, &request, paths, statement, graph)
}

fn checksum(stage: &Stage<'_, '_>, word: &Word, sources: &[&Word]) -> Result<String, Diagnostic> {
    let [source] = sources else {
        return Err(Diagnostic::error(
            word.span,
            "checksum can't be specified for multiple sources",
        )
        .help("write one ADD for each source"));
    };
    let path = stage.expand(source)?;
    let is_git = GitRef::parse(&path, false).is_some();
    if !is_url(&path) && !is_git {
        return Err(Diagnostic::error(word.span, "checksum requires HTTP(S) or Git sources")
            .help("leave --checksum out: the content of local files is always part of the key"));
    }
    let text = stage.expand(word)?;
    if !is_git && !is_digest(&text) {
        return Err(Diagnostic::error(
            word.span,
            format!("invalid checksum digest format: {text}"),
        )
        .help("write sha256: and 64 hexadecimal digits"));
    }
    Ok(text)
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn add_source(
    stage: &Stage<'_, '_>,
    add: &Add,
    path: String,
    checksum: Option<&str>,
    span: Span,
    graph: &mut Graph,
) -> Result<CopySource, Diagnostic> {
    let step = |text: &str| crate::graph::Step {
        label: format!("[internal] fetch {text}"),
        text: text.to_owned(),
        stage: stage.stage.label.clone(),
        span,
    };
    if let Some(git) = GitRef::parse(&path, false) {
        let git = git.and_then(|git| git_source(stage, add, git, checksum));
        let git = git.map_err(|why| {
            Diagnostic::error(span, format!("invalid git source: {why}"))
                .help("for example https://host/repository.git#branch:folder")
        })?;
        let step = step(&git.to_string());
        let node = graph.add(Op::Git(git), None, stage.stage.no_cache, step);
        let from = CopyFrom::Snapshot(Input::Node(node));
        return Ok(CopySource { from, path: "/".to_owned(), unpack: Unpack::Never });
    }
    let checksum = checksum.map(str::to_owned);
    if is_url(&path) {
        let op = HttpOp { filename: url_file_name(&path), url: path.clone(), checksum };
        let node = graph.add(Op::Http(op), None, false, step(&path));
        let unpack = if add.unpack == Some(true) { Unpack::IfArchive } else { Unpack::Never };
        return Ok(CopySource { from: CopyFrom::Remote(node), path: String::new(), unpack });
    }
    stage.check_ignored("Add", &path, span);
    let unpack = if add.unpack == Some(false) { Unpack::Never } else { Unpack::IfArchive };
    let from = stage.context("context", span, graph);
    Ok(CopySource { from, path, unpack })
}

/// The flags of ADD say more than the address.
fn git_source(
    stage: &Stage<'_, '_>,
    add: &Add,
    mut git: GitRef,
    checksum: Option<&str>,
) -> Result<GitRef, String> {
    if let Some(keep) = add.keep_git_dir {
        git.keep_git_dir = keep;
    }
    if let Some(checksum) = checksum {
        if !git.checksum.is_empty() && git.checksum != checksum {
            return Err(format!("checksum mismatch {checksum:?} != {:?}", git.checksum));
        }
        checksum.clone_into(&mut git.checksum);
    }
    git.commit_times |= stage.plan.epoch.is_some();
    Ok(git)
}

/// The last element of the URL's path.
fn url_file_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once("://").map_or("", |(_, rest)| rest);
    let path = path.split_once('/').map_or("", |(_, path)| path);
    match path.trim_end_matches('/').rsplit('/').next() {
        Some(name) if !matches!(name, "" | "." | "..") => name.to_owned(),
        _ => "__unnamed__".to_owned(),
    }
}

fn path(source: &FileSource) -> Option<&Word> {
    match source {
        FileSource::Path(word) => Some(word),
        FileSource::Inline(_) => None,
    }
}

fn is_url(path: &str) -> bool {
    path.starts_with("http://") || path.starts_with("https://")
}

/// `--chown`. A name that an image does not know is root there (BuildKit's rule); a number that is too
/// large for an id must not become root by it.
fn owner(stage: &Stage<'_, '_>, word: &Word) -> Result<String, Diagnostic> {
    let text = stage.expand(word)?;
    let is_number = |part: &str| {
        let digits = part.strip_prefix(['-', '+']).unwrap_or(part);
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let is_id = |part: &str| part.parse::<u32>().is_ok_and(|id| id != u32::MAX);
    match text.split(':').find(|part| is_number(part) && !is_id(part)) {
        Some(part) => {
            let message = format!("invalid --chown={text}: {part} is no user or group id");
            Err(Diagnostic::error(word.span, message).help("ids are numbers from 0 to 4294967294"))
        }
        None => Ok(text),
    }
}

/// Paths first, heredocs behind them; then the node and the line of history.
fn finish(
    stage: &mut Stage<'_, '_>,
    request: &Request<'_>,
    mut sources: Vec<CopySource>,
    statement: &Statement,
    graph: &mut Graph,
) -> Result<(), Diagnostic> {
    let written = stage.expand(request.dest)?;
    let chown = request.chown.map(|word| owner(stage, word)).transpose()?;
    let chmod_text = request.chmod.map(|word| stage.expand(word)).transpose()?;
    let chmod = match (&chmod_text, request.chmod) {
        (Some(text), Some(word)) if !text.is_empty() => Some(parse_chmod(text, word.span)?),
        _ => None,
    };
    let mut history = request.word.to_owned();
    if request.parents {
        history.push_str(" --parents");
    }
    if let Some(chown) = chown.as_ref().filter(|chown| !chown.is_empty()) {
        history.push_str(&format!(" --chown={chown}"));
    }
    if let Some(text) = chmod_text.filter(|text| !text.is_empty()) {
        history.push_str(&format!(" --chmod={text}"));
    }
    for word in request.sources.iter().filter_map(path) {
        history.push_str(&format!(" {}", stage.expand(word)?));
    }
    for source in request.sources {
        if let FileSource::Inline(inline) = source {
            history.push_str(&format!(" <<{}", inline.document.name));
            sources.push(inline_source(stage, inline)?);
        }
    }
    history.push_str(&format!(" {written} # buildkit"));
    let text = stage.display(statement);
    let step = stage.step(&text, statement.span);
    let op = Op::Copy(Box::new(CopyOp {
        base: stage.result.snapshot,
        sources,
        dest: destination(&stage.result.config.working_dir, &written),
        link: request.link && chmod.is_none(),
        chown: chown.filter(|chown| !chown.is_empty()),
        chmod,
        parents: request.parents,
        exclude: request.exclude.iter().map(|word| word.text.clone()).collect(),
    }));
    let node = graph.add(op, None, stage.stage.no_cache, step);
    stage.result.snapshot = Input::Node(node);
    stage.remember(history, Some(node));
    Ok(())
}

fn inline_source(stage: &Stage<'_, '_>, inline: &InlineSource) -> Result<CopySource, Diagnostic> {
    let document = &inline.document;
    let mut data = document.text();
    if document.expand {
        let expanded = expand(&data, '\\', Quotes::Ordinary, &stage.result.env)
            .map_err(|error| Diagnostic::error(document.span, error.reason))?;
        stage.check_variables(&expanded.missing, document.span);
        data = expanded.text;
    }
    let taken = stage.plan.budget.take(&data, "");
    taken.map_err(|reason| Diagnostic::error(document.span, reason))?;
    let file = InlineFile { name: document.name.clone(), data };
    Ok(CopySource { from: CopyFrom::Inline(file), path: String::new(), unpack: Unpack::Never })
}

/// The destination below the working directory; a trailing `/` or `/.` stays significant.
fn destination(working_dir: &str, written: &str) -> String {
    let joined = match written {
        "" | "." => format!("{working_dir}/"),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("{working_dir}/{path}"),
    };
    let directory = joined.ends_with('/') || joined.ends_with("/.");
    let cleaned = crate::ignore::clean(&joined);
    match (cleaned.is_empty(), directory) {
        (true, _) => "/".to_owned(),
        (false, true) => format!("/{cleaned}/"),
        (false, false) => format!("/{cleaned}"),
    }
}

fn parse_chmod(text: &str, span: Span) -> Result<Chmod, Diagnostic> {
    let invalid = || {
        let message = format!(
            "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
        );
        Diagnostic::error(span, message).help("for example 755, 0644 or u=rwX,go=rX")
    };
    if let Ok(mode) = u32::from_str_radix(text, 8) {
        return if mode <= 0o7777 { Ok(Chmod::Octal(mode)) } else { Err(invalid()) };
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) || !text.split(',').all(is_symbolic) {
        return Err(invalid());
    }
    Ok(Chmod::Symbolic(text.to_owned()))
}

/// One clause of chmod(1): `[ugoa…][-+=][rwxXst…|u|g|o]…`.
fn is_symbolic(clause: &str) -> bool {
    let actions = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    actions.starts_with(['+', '-', '='])
        && actions.split(['+', '-', '=']).skip(1).all(|permissions| {
            matches!(permissions, "u" | "g" | "o")
                || permissions.chars().all(|c| matches!(c, 'r' | 'w' | 'x' | 'X' | 's' | 't'))
        })
}

#[cfg(test)]
mod tests {
    use super::{destination, parse_chmod, url_file_name};
    use crate::graph::Chmod;
    use crate::source::Span;

    #[test]
    fn destinations() {
        for (written, expect) in [
            ("", "/w/"),
            (".", "/w/"),
            ("./", "/w/"),
            ("a", "/w/a"),
            ("a/", "/w/a/"),
            ("a/.", "/w/a/"),
            ("/a/../b", "/b"),
            ("/", "/"),
            ("../x", "/x"),
        ] {
            assert_eq!(destination("/w", written), expect, "{written:?}");
        }
    }

    #[test]
    fn modes() {
        assert_eq!(parse_chmod("755", Span::default()), Ok(Chmod::Octal(0o755)));
        for text in ["u=rwX,go=rX", "+x", "g=u", "a-w+x"] {
            assert_eq!(parse_chmod(text, Span::default()), Ok(Chmod::Symbolic(text.to_owned())));
        }
        for text in ["10000", "999", "u+q", "foo", "u"] {
            assert!(parse_chmod(text, Span::default()).is_err(), "{text}");
        }
    }

    #[test]
    fn names_of_downloads() {
        for (url, name) in [
            ("https://e.org/a/b.tar?x=1", "b.tar"),
            ("https://e.org", "__unnamed__"),
            ("https://e.org/a/", "a"),
        ] {
            assert_eq!(url_file_name(url), name);
        }
    }
}
