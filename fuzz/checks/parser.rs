//! What must be true of the language, whatever the text: called by the fuzz targets, and by the tests
//! with every file of the corpora.

use kiln_parser::config::ImageConfig;
use kiln_parser::diagnostic::Diagnostic;
use kiln_parser::expand::{ExpandError, Expanded, Lookup, Quotes, expand};
use kiln_parser::git::GitRef;
use kiln_parser::ignore::{Glob, Patterns, Verdict, clean, unescape};
use kiln_parser::instruction::Word;
use kiln_parser::lower::{self, BaseImage, Known, LowerOptions, Lowered, Lowering};
use kiln_parser::source::Source;
use kiln_parser::{duration, mount, platform, tree};

/// How often lowering may ask for images: bases first, then what their triggers name.
const ROUNDS_MAX: usize = 8;

/// How many times longer than its text an expansion may be that does not replace throughout a
/// value: no value of [`Table`] is longer.
const GROWTH_MAX: usize = 20;

/// Bytes that no expansion exceeds, whatever its operators.
const EXPANDED_BYTES_MAX: usize = 16 << 20;

/// No text makes the parser panic, and printing a tree is the inverse of parsing it.
pub(crate) fn parser(text: &str) {
    tree::check_round_trip(text);
}

/// Whatever parses, lowers or is refused; once with bare images as bases and once with some that
/// have triggers and variables. Every place that is told is in the file.
pub(crate) fn lower(text: &str) {
    let source = Source::new("Dockerfile", text.to_owned());
    let (dockerfile, diagnostics) = tree::parse(&source);
    check_places(&source, &diagnostics);
    if !diagnostics.is_empty() {
        return;
    }
    let rich = ImageConfig {
        env: vec![("PATH".to_owned(), "/bin".to_owned()), ("x".to_owned(), "1 2".to_owned())],
        on_build: vec!["COPY a $x".to_owned(), "RUN b".to_owned()],
        ..ImageConfig::default()
    };
    let all = LowerOptions { all_stages: true, ..LowerOptions::default() };
    lower_with(&source, &dockerfile, &LowerOptions::default(), &ImageConfig::default());
    lower_with(&source, &dockerfile, &all, &rich);
}

fn lower_with(
    source: &Source,
    dockerfile: &tree::Dockerfile,
    options: &LowerOptions,
    config: &ImageConfig,
) {
    let mut known = Known::new();
    for _ in 0..ROUNDS_MAX {
        match lower::lower(dockerfile, options, &known) {
            Err(diagnostics) => {
                assert!(!diagnostics.is_empty(), "{:?} is refused for nothing", source.text());
                return check_places(source, &diagnostics);
            }
            Ok(Lowering::Done(lowered)) => return check_lowered(source, &lowered),
            Ok(Lowering::NeedImages(requests)) => {
                assert!(!requests.is_empty(), "{:?} needs nothing", source.text());
                for request in requests {
                    let image = BaseImage {
                        digest: "sha256:0".to_owned(),
                        config: config.clone(),
                        platform: request.key.platform.clone(),
                        diff_ids: vec!["sha256:1".to_owned()],
                        unknown: false,
                    };
                    let before = known.insert(request.key, image);
                    assert!(before.is_none(), "{:?} needs what it has", source.text());
                }
            }
        }
    }
}

fn check_places(source: &Source, diagnostics: &[Diagnostic]) {
    for diagnostic in diagnostics {
        let labels = diagnostic.labels.iter().map(|label| label.span);
        for span in diagnostic.span.into_iter().chain(labels) {
            let text = source.text();
            assert!(text.get(span.range()).is_some(), "{diagnostic:?} is not in {text:?}");
        }
    }
}

/// Nodes come from somewhere in the file and read only what was made before them.
fn check_lowered(source: &Source, lowered: &Lowered) {
    check_places(source, &lowered.warnings);
    for id in lowered.graph.ids() {
        let node = lowered.graph.node(id);
        assert!(!node.steps.is_empty(), "{node:?} comes from nowhere");
        let placed = |span: kiln_parser::source::Span| source.text().get(span.range()).is_some();
        assert!(node.steps.iter().all(|step| placed(step.span)), "{node:?} is not in the file");
        assert!(node.op.inputs().iter().all(|input| *input < id), "{node:?} reads itself");
    }
    assert_eq!(lowered.targets.len(), 1);
}

struct Table;

impl Lookup for Table {
    fn get(&self, name: &str) -> Option<&str> {
        match name {
            "a" => Some("1"),
            "b" => Some("x y 'z"),
            "c" => Some(""),
            "d" => Some("/usr/lib/a.tar.gz"),
            "e" => Some("*\\}?/\u{e9}\"$a"),
            _ => None,
        }
    }
}

/// Expansion ends, and gives no more than its input and the values allow.
pub(crate) fn expansion(text: &str) {
    for quotes in [Quotes::Process, Quotes::Ordinary, Quotes::Keep] {
        for escape in ['\\', '`'] {
            check_expansion(text, escape, expand(text, escape, quotes, &Table));
        }
    }
}

fn check_expansion(text: &str, escape: char, result: Result<Expanded, ExpandError>) {
    let expanded = match result {
        Ok(expanded) => expanded,
        Err(error) => {
            assert!(error.to_string().starts_with("failed to process \""), "{error}");
            return;
        }
    };
    let length = expanded.text.len();
    assert!(length <= EXPANDED_BYTES_MAX, "{text:?} becomes {length} bytes");
    if !text.contains("//") {
        assert!(length <= GROWTH_MAX * text.len(), "{text:?} becomes {length} bytes");
    }
    let words: usize = expanded.words.iter().map(String::len).sum();
    assert!(words <= length, "{text:?} has words that are not in it");
    assert!(expanded.words.iter().all(|word| !word.is_empty()), "{text:?} has an empty word");
    if !text.contains(['$', '\'', '"', escape]) {
        assert_eq!(expanded.text, text);
    }
    assert!(expanded.used.iter().all(|name| Table.get(name).is_some()), "{text:?}");
    assert!(expanded.missing.iter().all(|name| Table.get(name).is_none()), "{text:?}");
}

/// The first line is the path, the rest an ignore file. What a walk prunes is matched in full.
pub(crate) fn ignore(text: &str) {
    let (path, patterns) = text.split_once('\n').unwrap_or((text, ""));
    let path = clean(path);
    assert_eq!(clean(&path), path, "cleaning twice is cleaning");
    if let Ok(compiled) = Patterns::parse(patterns) {
        let matched = compiled.matches(&path);
        let file = compiled.verdict(&path, false);
        let folder = compiled.verdict(&path, true);
        assert_eq!(matched, file != Verdict::Include, "{text:?}");
        assert_eq!(matched, folder != Verdict::Include, "{text:?}");
        assert!(file != Verdict::ExcludeButDescend, "{text:?} descends into a file");
        assert!(!compiled.is_empty() || !matched, "{text:?} matches without a pattern");
        // What exceptions bring back, if they are read as paths, and one more name.
        let named = patterns.lines().filter_map(|line| Some(clean(line.strip_prefix('!')?.trim())));
        let inside = named.filter(|name| name.starts_with(&format!("{path}/")));
        for below in inside.chain([format!("{path}/x")]) {
            let kept = folder != Verdict::Exclude || path.is_empty() || compiled.matches(&below);
            assert!(kept, "{text:?} prunes {below:?}, which it does not match");
        }
    }
    for pattern in patterns.lines() {
        check_glob(pattern, &path);
    }
}

fn check_glob(pattern: &str, path: &str) {
    for glob in [Glob::new(pattern), Glob::with_double_star(pattern)].into_iter().flatten() {
        let _either = glob.matches(path);
    }
    if !Glob::is_pattern(pattern) && !pattern.contains('\\') {
        let glob = Glob::new(pattern).expect("a name without wildcards");
        assert!(glob.matches(pattern), "{pattern:?} does not match itself");
        assert_eq!(unescape(pattern), pattern);
    }
}

/// Mount options are read or refused, expanded or as they are.
pub(crate) fn mounts(text: &str) {
    let word = Word { text: text.to_owned(), ..Word::default() };
    let read = mount::parse(&word, &mut |value| Ok(value.to_owned()));
    let expanded = mount::parse(&word, &mut |value| {
        expand(value, '\\', Quotes::Process, &Table)
            .map(|expanded| expanded.text)
            .map_err(|error| Diagnostic::error(word.span, error.to_string()))
    });
    if mount::check(&word).is_err() {
        assert!(read.is_err() && expanded.is_err(), "{text:?} is read though it is wrong");
    }
    if let Ok(flag) = read {
        assert_eq!(mount::from(&word), flag.from, "{text:?}");
    }
    if let Some(bytes) = mount::bytes(text) {
        assert_eq!(mount::bytes(&bytes.to_string()), Some(bytes), "{text:?}");
    }
}

/// Names of the language that people and other programs write: git addresses, platforms, durations.
pub(crate) fn names(text: &str) {
    for context in [false, true] {
        if let Some(Ok(git)) = GitRef::parse(text, context) {
            assert!(!git.remote.starts_with('-') && !git.reference.starts_with('-'), "{text:?}");
            assert!(!git.subdir.split('/').any(|part| part == ".."), "{text:?}");
        }
    }
    if let Ok(read) = text.parse::<platform::Platform>() {
        assert_eq!(read.to_string().parse(), Ok(read), "{text:?}");
    }
    if let Ok(nanoseconds) = duration::parse(text) {
        assert_eq!(duration::parse(&duration::print(nanoseconds)), Ok(nanoseconds), "{text:?}");
    }
}
