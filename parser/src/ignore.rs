//! `.dockerignore` and `--exclude` patterns (moby/patternmatcher) and the wildcards of COPY (Go's
//! `filepath.Match`): compile, match, prune. No file access. Paths are relative, with `/`.

use regex::Regex;
use thiserror::Error;

/// What a directory walk may do with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is part of the context.
    Include,
    /// It is not, and nothing below it can be.
    Exclude,
    /// It is not, but something below it may be.
    ExcludeButDescend,
}

/// Why a pattern cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PatternError {
    /// A lone `!`.
    #[error("illegal exclusion pattern: \"!\"")]
    LoneExclamation,
    /// A `[` without its `]`, or a lone `\` at the end.
    #[error("syntax error in pattern `{0}`")]
    Syntax(String),
}

/// An ordered list of patterns; the last match wins.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    negated: bool,
    regex: Regex,
    /// It takes everything: `*`, `**`, `**/*`.
    everything: bool,
    /// Path components without any wildcard at the start: where a negated pattern can match.
    literal: String,
}

impl Patterns {
    /// Reads an ignore file: comments only in column one, blanks trimmed, a byte order mark skipped.
    ///
    /// # Errors
    /// A pattern that makes no sense.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().filter(|line| !line.starts_with('#')).map(str::trim);
        Self::new(lines.filter(|line| !line.is_empty()))
    }

    /// Compiles single patterns.
    ///
    /// # Errors
    /// A pattern that makes no sense.
    pub fn new<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Self, PatternError> {
        let patterns = lines.into_iter().map(compile).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { patterns: patterns.into_iter().flatten().collect() })
    }

    /// Whether there is no pattern at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a pattern brings something back (`!`).
    #[must_use]
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.negated)
    }

    /// Whether a pattern leaves everything out that is in the root.
    #[must_use]
    pub fn takes_all(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.everything && !pattern.negated)
    }

    /// Whether a path, or a folder above it, is matched; the last pattern that says something wins.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let mut matched = false;
        for pattern in &self.patterns {
            if pattern.negated == matched && pattern.matches_with_parents(path) {
                matched = !pattern.negated;
            }
        }
        matched
    }

    /// What a walk may do with a path.
    #[must_use]
    pub fn verdict(&self, path: &str, is_directory: bool) -> Verdict {
        if !self.matches(path) {
            return Verdict::Include;
        }
        let below = || self.patterns.iter().any(|p| p.negated && p.may_match_below(path));
        if is_directory && below() { Verdict::ExcludeButDescend } else { Verdict::Exclude }
    }
}

impl Pattern {
    fn matches_with_parents(&self, path: &str) -> bool {
        if self.regex.is_match(path) {
            return true;
        }
        path.match_indices('/').any(|(at, _)| self.regex.is_match(&path[..at]))
    }

    /// Whether something below a folder could match: their literal beginnings agree.
    fn may_match_below(&self, folder: &str) -> bool {
        let (a, b) = (self.literal.split('/'), folder.split('/'));
        self.literal.is_empty() || a.zip(b).all(|(x, y)| x == y)
    }
}

fn compile(line: &str) -> Result<Option<Pattern>, PatternError> {
    let (negated, text) = match line.strip_prefix('!') {
        Some(rest) => (true, rest.trim()),
        None => (false, line),
    };
    if negated && text.is_empty() {
        return Err(PatternError::LoneExclamation);
    }
    let cleaned = clean(text);
    if cleaned.is_empty() {
        // `.` and `/` name the root, which is never left out.
        return Ok(None);
    }
    let regex = pattern_regex(&cleaned)?;
    let literal: Vec<&str> =
        cleaned.split('/').take_while(|part| !part.contains(['*', '?', '[', '\\'])).collect();
    let everything = matches!(cleaned.as_str(), "*" | "**" | "**/*");
    Ok(Some(Pattern { negated, regex, everything, literal: literal.join("/") }))
}

/// Go's `filepath.Clean`, without a leading `/`.
#[must_use]
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if path.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// `*` and `?` stay within a component, `**` crosses them.
fn pattern_regex(pattern: &str) -> Result<Regex, PatternError> {
    let syntax = || PatternError::Syntax(pattern.to_owned());
    let mut out = String::from("(?s)^");
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                // `**/` is any number of folders, also none; a final `**` is everything.
                chars.next_if_eq(&'/');
                out.push_str(if chars.peek().is_none() { ".*" } else { "(.*/)?" });
            }
            '*' => out.push_str("[^/]*"),
            '?' => out.push_str("[^/]"),
            '\\' => {
                let escaped = chars.next().ok_or_else(syntax)?;
                out.push_str(&regex::escape(&escaped.to_string()));
            }
            '[' => push_class(&mut chars, &mut out).ok_or_else(syntax)?,
            c => out.push_str(&regex::escape(&c.to_string())),
        }
    }
    out.push('$');
    Regex::new(&out).map_err(|_| syntax())
}

/// A character class behind its `[`, in the form of Go's `filepath.Match`.
fn push_class(
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
    out: &mut String,
) -> Option<()> {
    out.push('[');
    if chars.next_if_eq(&'^').is_some() {
        out.push('^');
    }
    let mut first = true;
    loop {
        let c = match chars.next()? {
            ']' if !first => break,
            '\\' => chars.next()?,
            '-' if first => '-',
            c => c,
        };
        out.push_str(&class_char(c));
        if chars.next_if_eq(&'-').is_some() {
            if chars.next_if_eq(&']').is_some() {
                out.push_str("\\-");
                break;
            }
            let end = match chars.next()? {
                '\\' => chars.next()?,
                c => c,
            };
            out.push('-');
            out.push_str(&class_char(end));
        }
        first = false;
    }
    out.push(']');
    Some(())
}

fn class_char(c: char) -> String {
    if c.is_alphanumeric() { c.to_string() } else { format!("\\x{{{:x}}}", u32::from(c)) }
}

/// A wildcard of COPY and ADD: Go's `filepath.Match`, over a whole relative path.
#[derive(Clone, Debug)]
pub struct Glob {
    regex: Regex,
}

impl Glob {
    /// Whether a source holds wildcards at all.
    #[must_use]
    pub fn is_pattern(path: &str) -> bool {
        let mut chars = path.chars();
        while let Some(c) = chars.next() {
            match c {
                '*' | '?' | '[' => return true,
                '\\' => {
                    chars.next();
                }
                _ => {}
            }
        }
        false
    }

    /// Compiles a pattern; `**` means the same as `*`.
    ///
    /// # Errors
    /// A `[` without its `]`, a lone `\` at the end.
    pub fn new(pattern: &str) -> Result<Self, PatternError> {
        let mut single = String::with_capacity(pattern.len());
        let mut escaped = false;
        for c in pattern.chars() {
            if c != '*' || escaped || !single.ends_with('*') || single.ends_with("\\*") {
                single.push(c);
            }
            escaped = c == '\\' && !escaped;
        }
        Ok(Self { regex: pattern_regex(&single)? })
    }

    /// Like [`Self::new`], but `**` crosses folders, as `COPY --parents` has it.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_double_star(pattern: &str) -> Result<Self, PatternError> {
        Ok(Self { regex: pattern_regex(&clean(pattern))? })
    }

    /// Whether a path matches as a whole.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        self.regex.is_match(path)
    }
}

/// A source path with its escapes taken away, for one that is no pattern.
#[must_use]
pub fn unescape(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Glob, PatternError, Patterns, Verdict, clean};

    fn check(patterns: &[&str], path: &str, expect: bool) {
        let compiled = Patterns::new(patterns.iter().copied()).expect("valid");
        assert_eq!(compiled.matches(path), expect, "{patterns:?} {path}");
    }

    /// From the table of moby/patternmatcher's tests.
    #[test]
    fn pattern_table() {
        for (pattern, path, expect) in [
            ("**", "file", true),
            ("**", "dir/file", true),
            ("**/", "dir/file", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir/dir2/file", true),
            ("dir/**", "dir", false),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/**", "dir/dir2/dir2/file", true),
            ("**file", "dir/file", true),
            ("**/file", "file", true),
            ("**/file", "dir/dir/file", true),
            ("**/file*", "dir/dir/file.txt", true),
            ("**/file*txt", "dir/dir/file.txt", true),
            ("**/file*.txt*", "dir/dir/file.txt", true),
            ("**/**/*.txt", "dir/dir/file.txt", true),
            ("**/**/*.txt2", "dir/dir/file.txt", false),
            ("**/*.txt", "file.txt", true),
            ("a**/*.txt", "a/file.txt", true),
            ("a**/*.txt", "a/dir/dir/file.txt", true),
            ("a[b-d]e", "ae", false),
            ("a[b-d]e", "ace", true),
            ("a[^b-d]e", "aze", true),
            (".*", ".foo", true),
            (".*", "foo", false),
            ("abc.def", "abcdef", false),
            ("abc?def", "abc/def", false),
            ("a\\\\", "a\\", true),
            ("a\\b", "ab", true),
            ("**/foo/bar", "foo/bar", true),
            ("abc/**", "abc/def/ghi", true),
            ("/a/b", "a/b", true),
            ("a/../b", "b", true),
            ("*/foo", "x/foo/below", true),
            ("[\"a-]", "-", true),
        ] {
            check(&[pattern], path, expect);
        }
    }

    #[test]
    fn last_match_wins() {
        check(&["*", "!a"], "a", false);
        check(&["*", "!a", "a/b"], "a/b", true);
        check(&["docs", "!docs/README.md"], "docs/README.md", false);
        check(&["docs", "!docs/README.md"], "docs/x", true);
    }

    #[test]
    fn files_are_read_line_by_line() {
        let patterns = Patterns::parse("\u{feff}# c\r\n  a  \r\n\n! b\n/\n").expect("valid");
        assert!(patterns.matches("a"));
        assert!(patterns.has_exceptions());
        assert_eq!(Patterns::parse("!").expect_err("lone"), PatternError::LoneExclamation);
        assert!(Patterns::parse("[a").is_err());
        assert!(!Patterns::parse(".").expect("valid").matches("a"));
    }

    #[test]
    fn walks_are_pruned() {
        let patterns = Patterns::new(["*", "!a/b/c", "!*.md"]).expect("valid");
        assert_eq!(patterns.verdict("a", true), Verdict::ExcludeButDescend);
        let patterns = Patterns::new(["*", "!a/b/c"]).expect("valid");
        assert_eq!(patterns.verdict("a", true), Verdict::ExcludeButDescend);
        assert_eq!(patterns.verdict("z", true), Verdict::Exclude);
        assert_eq!(patterns.verdict("a/b/c", false), Verdict::Include);
        assert_eq!(patterns.verdict("a/x", true), Verdict::Exclude);
    }

    #[test]
    fn wildcards_of_copy() {
        for (pattern, path, expect) in [
            ("*.txt", "a.txt", true),
            ("*.txt", "d/a.txt", false),
            ("d/*/x", "d/e/x", true),
            ("a**b", "a/b", false),
            ("a**b", "axxb", true),
            ("a\\*b", "a*b", true),
            ("[a-c]x", "bx", true),
        ] {
            assert_eq!(
                Glob::new(pattern).expect(pattern).matches(path),
                expect,
                "{pattern} {path}"
            );
        }
        assert!(Glob::is_pattern("a*") && !Glob::is_pattern("a\\*"));
        assert!(Glob::with_double_star("a/**/x").expect("valid").matches("a/b/c/x"));
    }

    #[test]
    fn paths_are_cleaned() {
        for (path, expect) in
            [("/a//b/./c/../d/", "a/b/d"), ("..", ".."), ("/..", ""), ("a/..", "")]
        {
            assert_eq!(clean(path), expect, "{path}");
        }
    }
}
