//! What a build reads from the caller: the Dockerfile, the context, its ignore file, named contexts.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use kiln_parser::ignore::Patterns;
use kiln_parser::source::Source;

use super::options::BuildOptions;
use super::values::{ContextValue, build_context};
use crate::failure::Failure;
use crate::wire::copy::Folder;

/// A Dockerfile larger than this is no Dockerfile.
const DOCKERFILE_BYTES_MAX: u64 = 16 << 20;

/// Everything that was read.
pub(crate) struct Inputs {
    /// The Dockerfile.
    pub(crate) source: Source,
    /// Named contexts, names in lower case.
    pub(crate) contexts: BTreeMap<String, ContextValue>,
    /// The main context; `None` where there is none (`-`).
    context: Option<PathBuf>,
    /// Ignore file of the main context: name and text.
    ignore: Option<(String, String)>,
}

impl Inputs {
    /// Reads the Dockerfile and its ignore file, and checks that the context is there.
    ///
    /// # Errors
    /// Something is missing or cannot be read.
    pub(crate) fn read(options: &BuildOptions) -> Result<Self, Failure> {
        let contexts = options.input.build_context.iter().map(|text| build_context(text));
        let contexts = contexts.collect::<Result<BTreeMap<_, _>, _>>()?;
        let file = options.input.file.as_deref();
        if options.context == "-" {
            if file == Some("-") {
                return Err(Failure::usage(
                    "invalid argument: can't use stdin for both build context and dockerfile",
                ));
            }
            return Self::from_stdin(file, contexts, None);
        }
        let context = PathBuf::from(&options.context);
        if options.context.contains("://") || options.context.starts_with("git@") {
            return Err(Failure::usage(format_args!(
                "context `{}` is remote: that is not supported",
                options.context
            ))
            .hint("clone or download it and name the folder"));
        }
        if !context.is_dir() {
            return Err(Failure::input(format_args!(
                "context `{}` is no folder",
                context.display()
            ))
            .hint("the last argument is the folder that COPY reads from, often `.`"));
        }
        if file == Some("-") {
            return Self::from_stdin(None, contexts, Some(context));
        }
        let (path, text) = read_dockerfile(file, &context)?;
        let ignore = read_ignore(&path, &context);
        let name = file.map_or_else(|| file_name(&path), str::to_owned);
        Ok(Self {
            source: Source::new(short(&name), text),
            contexts,
            context: Some(context),
            ignore,
        })
    }

    fn from_stdin(
        file: Option<&str>,
        contexts: BTreeMap<String, ContextValue>,
        context: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        if let Some(file) = file {
            return Err(Failure::usage(format_args!(
                "`-f {file}` with the context on standard input is not supported"
            ))
            .hint("standard input is taken as the Dockerfile, with an empty context"));
        }
        let text = read_text(&mut io::stdin().lock(), "standard input")?;
        if text.as_bytes().get(257..262) == Some(b"ustar") {
            return Err(Failure::usage(
                "a tar archive on standard input is not supported as a context",
            )
            .hint("unpack it and name the folder"));
        }
        let ignore = context.as_deref().and_then(|context| read_ignore(Path::new("-"), context));
        Ok(Self { source: Source::new("Dockerfile", text), contexts, context, ignore })
    }

    /// The folders that steps may read, by the names of their contexts.
    ///
    /// # Errors
    /// An ignore file with a pattern that makes no sense.
    pub(crate) fn folders(&self) -> Result<BTreeMap<String, Folder>, Failure> {
        let mut folders = BTreeMap::new();
        if let Some(path) = &self.context {
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

/// `-f`, else `Dockerfile` or `dockerfile` of the context.
fn read_dockerfile(file: Option<&str>, context: &Path) -> Result<(PathBuf, String), Failure> {
    let path = file.map_or_else(|| context.join("Dockerfile"), PathBuf::from);
    let mut candidates = vec![path.clone()];
    if file_name(&path) == "Dockerfile" {
        candidates.push(path.with_file_name("dockerfile"));
    }
    for candidate in candidates {
        match fs::File::open(&candidate) {
            Ok(mut opened) => {
                let text = read_text(&mut opened, &candidate.display().to_string())?;
                return Ok((candidate, text));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::io("read", candidate.display(), &error)),
        }
    }
    Err(Failure::input(format_args!(
        "failed to read dockerfile: open {}: no such file or directory",
        path.display()
    ))
    .hint("name the file with -f FILE"))
}

fn read_text(from: &mut impl Read, name: &str) -> Result<String, Failure> {
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

/// `<Dockerfile>.dockerignore` beside the Dockerfile, else `.dockerignore` of the context.
fn read_ignore(dockerfile: &Path, context: &Path) -> Option<(String, String)> {
    let mut own = dockerfile.as_os_str().to_owned();
    own.push(".dockerignore");
    read_optional(Path::new(&own)).or_else(|| read_optional(&context.join(".dockerignore")))
}

fn read_optional(path: &Path) -> Option<(String, String)> {
    let bytes = fs::read(path).ok()?;
    Some((file_name(path), String::from_utf8_lossy(&bytes).into_owned()))
}
