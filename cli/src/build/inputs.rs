//! What a build reads from the caller: the Dockerfile, the context, its ignore file, named contexts.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kiln_cache::View;
use kiln_parser::git::GitRef;
use kiln_parser::ignore::Patterns;
use kiln_parser::lower::NamedContext;
use kiln_parser::source::Source;

use super::engine::Engine;
use super::fetched::{self, Fetched};
use super::options::BuildOptions;
use super::values::{ContextValue, build_context};
use crate::failure::{Failure, plain_io};
use crate::wire::copy::Folder;

/// A Dockerfile larger than this is no Dockerfile.
const DOCKERFILE_BYTES_MAX: u64 = 16 << 20;

/// Everything that was read.
pub(crate) struct Inputs {
    /// The Dockerfile.
    pub(crate) source: Source,
    /// Named contexts, names in lower case.
    pub(crate) contexts: BTreeMap<String, ContextValue>,
    /// The main context.
    context: MainContext,
    /// Ignore file of the main context: name and text.
    ignore: Option<(String, String)>,
}

/// Where COPY reads from.
enum MainContext {
    /// Nothing is there.
    Empty,
    /// A folder of the caller.
    Folder(PathBuf),
    /// Something that was fetched.
    Fetched(Box<Fetched>),
}

/// Named contexts, names in lower case.
///
/// # Errors
/// A malformed option; a folder that is not there.
pub(crate) fn named_contexts(
    options: &BuildOptions,
) -> Result<BTreeMap<String, ContextValue>, Failure> {
    options.input.build_context.iter().map(|text| build_context(text)).collect()
}

impl Inputs {
    /// Reads the Dockerfile and its ignore file; fetches the context where it is remote.
    ///
    /// # Errors
    /// Something is missing or cannot be read.
    pub(super) fn read(
        options: &BuildOptions,
        contexts: BTreeMap<String, ContextValue>,
        engine: &Engine<'_>,
    ) -> Result<Self, Failure> {
        let file = options.input.file.as_deref();
        if options.context == "-" {
            return Self::from_stdin(file, contexts, engine);
        }
        if let Some(git) = GitRef::parse(&options.context, true) {
            let git = git.map_err(|why| {
                Failure::usage(format_args!("invalid context `{}`: {why}", options.context))
            })?;
            let fetched = fetched::from_git(git, &options.language.build_arg, engine)?;
            return Self::from_fetched(fetched, file, contexts, engine);
        }
        if options.context.starts_with("http://") || options.context.starts_with("https://") {
            let fetched = fetched::from_url(&options.context, engine)?;
            return Self::from_fetched(fetched, file, contexts, engine);
        }
        Self::from_folder(PathBuf::from(&options.context), file, contexts, engine)
    }

    fn from_folder(
        context: PathBuf,
        file: Option<&str>,
        contexts: BTreeMap<String, ContextValue>,
        engine: &Engine<'_>,
    ) -> Result<Self, Failure> {
        if !context.is_dir() {
            return Err(Failure::input(format_args!(
                "context `{}` is no folder",
                context.display()
            ))
            .hint("the context is the folder that COPY reads from, often `.`, or the address of a repository or an archive"));
        }
        let (path, name, text) = match file {
            Some("-") => (PathBuf::from("-"), "Dockerfile".to_owned(), read_stdin()?),
            Some(url) if is_url(url) => {
                (PathBuf::from("-"), url.to_owned(), fetched::text(url, engine)?)
            }
            _ => {
                let (path, text) = read_dockerfile(file, &context)?;
                let name = file.map_or_else(|| file_name(&path), str::to_owned);
                (path, name, text)
            }
        };
        let ignore = read_ignore(&path, &context);
        let source = Source::new(short(&name), text);
        Ok(Self { source, contexts, context: MainContext::Folder(context), ignore })
    }

    fn from_stdin(
        file: Option<&str>,
        contexts: BTreeMap<String, ContextValue>,
        engine: &Engine<'_>,
    ) -> Result<Self, Failure> {
        if file == Some("-") {
            return Err(Failure::usage(
                "invalid argument: can't use stdin for both build context and dockerfile",
            ));
        }
        let fetched = fetched::from_stdin(&mut io::stdin().lock(), engine)?;
        if let (Fetched::Dockerfile { .. }, Some(file)) = (&fetched, file) {
            return Err(Failure::usage(format_args!(
                "ambiguous Dockerfile source: both standard input and `-f {file}` are Dockerfiles"
            ))
            .hint("leave -f out, or send an archive of the context to standard input"));
        }
        Self::from_fetched(fetched, file, contexts, engine)
    }

    /// The Dockerfile of a fetched context: in it, unless `-f` says otherwise.
    fn from_fetched(
        fetched: Fetched,
        file: Option<&str>,
        contexts: BTreeMap<String, ContextValue>,
        engine: &Engine<'_>,
    ) -> Result<Self, Failure> {
        let (name, text) = match (file, &fetched) {
            (Some("-"), _) => ("Dockerfile".to_owned(), read_stdin()?),
            (Some(url), _) if is_url(url) => (url.to_owned(), fetched::text(url, engine)?),
            (Some(path), _) if path.starts_with('/') => {
                (path.to_owned(), read_dockerfile(file, Path::new("/"))?.1)
            }
            (_, Fetched::Dockerfile { text, .. }) => ("Dockerfile".to_owned(), text.clone()),
            (_, Fetched::Tree { files, .. }) => read_fetched_dockerfile(files, file)?,
        };
        let source = Source::new(short(&name), text);
        let context = match fetched {
            Fetched::Dockerfile { context: None, .. } => MainContext::Empty,
            fetched => MainContext::Fetched(Box::new(fetched)),
        };
        Ok(Self { source, contexts, context, ignore: None })
    }

    /// The main context as the language sees it.
    pub(super) fn context(&self) -> NamedContext {
        match &self.context {
            MainContext::Fetched(fetched) => fetched.context(),
            MainContext::Folder(_) | MainContext::Empty => NamedContext::Local,
        }
    }

    /// What the ignore file of the main context leaves out.
    ///
    /// # Errors
    /// A pattern that makes no sense.
    pub(super) fn ignore(&self) -> Result<Patterns, Failure> {
        folder(Path::new(""), self.ignore.clone()).map(|folder| folder.ignore)
    }

    /// When the main context was made, in seconds since 1970: `SOURCE_DATE_EPOCH=context`.
    pub(super) fn context_time(&self) -> Option<i64> {
        match &self.context {
            MainContext::Fetched(fetched) => fetched.time(),
            MainContext::Folder(_) | MainContext::Empty => None,
        }
    }

    /// The folders that steps may read, by the names of their contexts.
    ///
    /// # Errors
    /// An ignore file with a pattern that makes no sense.
    pub(super) fn folders(&self) -> Result<BTreeMap<String, Folder>, Failure> {
        let mut folders = BTreeMap::new();
        if let MainContext::Folder(path) = &self.context {
            folders.insert("context".to_owned(), folder(path, self.ignore.clone())?);
        }
        for (name, value) in &self.contexts {
            if let ContextValue::Folder(path) = value {
                let ignore = read_optional(&path.join(".dockerignore"));
                folders.insert(name.clone(), folder(path, ignore)?);
            }
        }
        Ok(folders)
    }
}

fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

fn folder(path: &Path, ignore: Option<(String, String)>) -> Result<Folder, Failure> {
    let (ignore_name, text) = match ignore {
        Some((name, text)) => (Some(name), text),
        None => (None, String::new()),
    };
    let patterns = Patterns::parse(&text).map_err(|error| {
        Failure::input(format_args!("`{}`: {error}", ignore_name.as_deref().unwrap_or_default()))
    })?;
    Ok(Folder { path: path.to_owned(), ignore: patterns, ignore_name })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// How errors call the file: its name, with the folder only where it is not the usual one.
fn short(name: &str) -> String {
    name.strip_prefix("./").unwrap_or(name).to_owned()
}

/// The names that a Dockerfile may have: `-f`, else `Dockerfile` or `dockerfile`.
fn candidates(path: &Path) -> Vec<PathBuf> {
    let mut candidates = vec![path.to_owned()];
    if file_name(path) == "Dockerfile" {
        candidates.push(path.with_file_name("dockerfile"));
    }
    candidates
}

fn no_dockerfile(path: &Path) -> Failure {
    Failure::input(format_args!(
        "failed to read dockerfile: open {}: no such file or directory",
        path.display()
    ))
    .hint("name the file with -f FILE")
}

fn read_dockerfile(file: Option<&str>, context: &Path) -> Result<(PathBuf, String), Failure> {
    let path = file.map_or_else(|| context.join("Dockerfile"), PathBuf::from);
    for candidate in candidates(&path) {
        // What a context has may come from anybody; what the caller names may be a pipe.
        let opened = match file {
            Some(_) => fs::File::open(&candidate),
            None => open_regular(&candidate),
        };
        match opened {
            Ok(mut opened) => {
                let text = read_text(&mut opened, &candidate.display().to_string())?;
                return Ok((candidate, text));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::io("read", candidate.display(), &error)),
        }
    }
    Err(no_dockerfile(&path))
}

/// Opens a regular file; for anything else it neither waits nor reads.
fn open_regular(path: &Path) -> io::Result<fs::File> {
    let wait_not = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let file = fs::File::options().read(true).custom_flags(wait_not).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"))
}

/// The Dockerfile in a fetched context; its name never leads out of it.
fn read_fetched_dockerfile(
    files: &dyn View,
    file: Option<&str>,
) -> Result<(String, String), Failure> {
    let path = Path::new(file.unwrap_or("Dockerfile"));
    for candidate in candidates(path) {
        let found = kiln_cache::resolve(files, &candidate, true)
            .map_err(|e| Failure::input(format_args!("`{}`: {e}", candidate.display())))?;
        match files.open(&found) {
            Ok(mut opened) => {
                let name = candidate.display().to_string();
                let text = read_text(&mut opened, &name)?;
                return Ok((name, text));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let why = plain_io(&error);
                return Err(Failure::input(format_args!("`{}`: {why}", candidate.display())));
            }
        }
    }
    Err(no_dockerfile(path))
}

fn read_stdin() -> Result<String, Failure> {
    read_text(&mut io::stdin().lock(), "standard input")
}

/// A text of reasonable size.
///
/// # Errors
/// It cannot be read, is too large, or no UTF-8.
pub(super) fn read_text(from: &mut impl Read, name: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = from.take(DOCKERFILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|e| Failure::io("read", name, &e))?;
    if bytes.len() as u64 > DOCKERFILE_BYTES_MAX {
        return Err(Failure::input(format_args!(
            "`{name}` is larger than {DOCKERFILE_BYTES_MAX} bytes"
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
        Failure::input(format_args!(
            "`{name}` is not UTF-8 text: line {line} has a broken character"
        ))
        .hint("save the file as UTF-8")
    })
}

/// A Dockerfile by its path, and how errors call it.
///
/// # Errors
/// It is not there, or no text.
pub(crate) fn read_file(path: &Path) -> Result<(String, String), Failure> {
    let name = path.display().to_string();
    let mut opened = fs::File::open(path).map_err(|e| Failure::io("read", &name, &e))?;
    let text = read_text(&mut opened, &name)?;
    Ok((short(&name), text))
}

/// The ignore patterns of a Dockerfile whose context is its own folder.
///
/// # Errors
/// A pattern that makes no sense.
pub(crate) fn ignore_beside(path: &Path) -> Result<Patterns, Failure> {
    let context = path.parent().unwrap_or(Path::new(""));
    folder(context, read_ignore(path, context)).map(|folder| folder.ignore)
}

/// `<Dockerfile>.dockerignore` beside the Dockerfile, else `.dockerignore` of the context.
fn read_ignore(dockerfile: &Path, context: &Path) -> Option<(String, String)> {
    let mut own = dockerfile.as_os_str().to_owned();
    own.push(".dockerignore");
    read_optional(Path::new(&own)).or_else(|| read_optional(&context.join(".dockerignore")))
}

/// As in BuildKit, an ignore file that cannot be read counts as none.
fn read_optional(path: &Path) -> Option<(String, String)> {
    let mut text = Vec::new();
    open_regular(path).ok()?.read_to_end(&mut text).ok()?;
    Some((file_name(path), String::from_utf8_lossy(&text).into_owned()))
}
