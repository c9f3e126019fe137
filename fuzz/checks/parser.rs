//! What must be true of the language, whatever the text: called by the fuzz targets, and by the tests
//! with every file of the corpora.

use kiln_parser::config::ImageConfig;
use kiln_parser::expand::{Lookup, Quotes, expand};
use kiln_parser::git::GitRef;
use kiln_parser::ignore::{Glob, Patterns};
use kiln_parser::instruction::Word;
use kiln_parser::lower::{self, BaseImage, Known, LowerOptions, Lowering};
use kiln_parser::source::Source;
use kiln_parser::{duration, mount, platform, tree};

/// No text makes the parser panic, and printing a tree is the inverse of parsing it.
pub(crate) fn parser(text: &str) {
    tree::check_round_trip(text);
}

/// Whatever parses, lowers or is refused; with triggers and variables of bases.
pub(crate) fn lower(text: &str) {
    let source = Source::new("Dockerfile", text.to_owned());
    let (dockerfile, diagnostics) = tree::parse(&source);
    if !diagnostics.is_empty() {
        return;
    }
    let options = LowerOptions { all_stages: true, ..LowerOptions::default() };
    let mut known = Known::new();
    for _ in 0..8 {
        let Ok(Lowering::NeedImages(requests)) = lower::lower(&dockerfile, &options, &known) else {
            return;
        };
        for request in requests {
            let config = ImageConfig {
                env: vec![
                    ("PATH".to_owned(), "/bin".to_owned()),
                    ("x".to_owned(), "1 2".to_owned()),
                ],
                on_build: vec!["COPY a $x".to_owned(), "RUN b".to_owned()],
                ..ImageConfig::default()
            };
            let image = BaseImage {
                digest: "sha256:0".to_owned(),
                config,
                platform: request.key.platform.clone(),
                diff_ids: vec!["sha256:1".to_owned()],
                unknown: false,
            };
            known.insert(request.key, image);
        }
    }
}

struct Table;

impl Lookup for Table {
    fn get(&self, name: &str) -> Option<&str> {
        match name {
            "a" => Some("1"),
            "b" => Some("x y 'z"),
            "c" => Some(""),
            "d" => Some("/usr/lib/a.tar.gz"),
            _ => None,
        }
    }
}

/// Expansion ends, and gives no more than its input and the values allow.
pub(crate) fn expansion(text: &str) {
    for quotes in [Quotes::Process, Quotes::Ordinary, Quotes::Keep] {
        for escape in ['\\', '`'] {
            if let Ok(expanded) = expand(text, escape, quotes, &Table) {
                let most = (text.len() + 64) * 64;
                assert!(expanded.text.len() <= most * 64, "{text:?} becomes too large");
            }
        }
    }
}

/// The first line is the path, the rest an ignore file; what is left out is not walked into for nothing.
pub(crate) fn ignore(text: &str) {
    let (path, patterns) = text.split_once('\n').unwrap_or((text, ""));
    let path = kiln_parser::ignore::clean(path);
    if let Ok(patterns) = Patterns::parse(patterns) {
        let matched = patterns.matches(&path);
        let verdict = patterns.verdict(&path, true);
        assert_eq!(matched, verdict != kiln_parser::ignore::Verdict::Include, "{text:?}");
    }
    if let Ok(glob) = Glob::new(patterns) {
        let _either = glob.matches(&path);
    }
    if let Ok(glob) = Glob::with_double_star(patterns) {
        let _either = glob.matches(&path);
    }
}

/// Mount options are read or refused.
pub(crate) fn mounts(text: &str) {
    let word = Word { text: text.to_owned(), ..Word::default() };
    let read = mount::parse(&word, &mut |value| Ok(value.to_owned()));
    if mount::check(&word).is_ok() && read.is_ok() {
        let _early = mount::from(&word);
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
