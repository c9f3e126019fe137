//! `${name:-word}` and friends: variable expansion and quote removal, pure.
//!
//! The rules are those of BuildKit's `frontend/dockerfile/shell/lex.go`, a subset of the shell's:
//! `$v ${v} ${v:-w} ${v-w} ${v:+w} ${v+w} ${v:?m} ${v?m} ${v#p} ${v##p} ${v%p} ${v%%p} ${v/p/r}
//! ${v//p/r}`. Other modifiers are errors.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::str::Chars;

use regex::Regex;
use thiserror::Error;

/// How deep `${a:-${b:-…}}` may nest: far beyond any real file, and no stack runs out.
const DEPTH_MAX: usize = 64;

/// How large one value may grow, in bytes: `ENV a=$a$a` repeated must not eat the memory.
const EXPANDED_BYTES_MAX: usize = 16 << 20;

/// Where the values come from.
pub trait Lookup {
    /// The value of a variable; `None` where it is unset.
    fn get(&self, name: &str) -> Option<&str>;
}

/// An environment without any variable.
#[derive(Clone, Copy, Debug)]
pub struct NoVariables;

impl Lookup for NoVariables {
    fn get(&self, _: &str) -> Option<&str> {
        None
    }
}

/// How quotes and escapes are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quotes {
    /// Quotes group and vanish, as in an argument of ENV.
    Process,
    /// Quotes are ordinary characters, as in the body of a heredoc.
    Ordinary,
    /// Quotes and escapes group but stay, and unset variables stay as written: for finding words.
    Keep,
    /// Quotes and escapes vanish, but unset variables stay as written: the name of a heredoc.
    Name,
}

impl Quotes {
    /// Whether unset variables stay as written.
    const fn keeps_unset(self) -> bool {
        matches!(self, Self::Keep | Self::Name)
    }
}

/// What became of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The text with everything replaced.
    pub text: String,
    /// The same, split at blanks outside of quotes.
    pub words: Vec<String>,
    /// Variables that were found.
    pub used: BTreeSet<String>,
    /// Variables that were not.
    pub missing: BTreeSet<String>,
}

/// Why a text cannot be expanded; the messages are BuildKit's.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("failed to process \"{text}\": {reason}")]
pub struct ExpandError {
    /// The text as a whole.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Expands a text.
///
/// # Errors
/// An unbalanced quote or brace, an unknown modifier, `${v:?message}` of an unset variable.
pub fn expand(
    text: &str,
    escape: char,
    quotes: Quotes,
    variables: &dyn Lookup,
) -> Result<Expanded, ExpandError> {
    if !text.contains(['$', '\'', '"', escape, ' ', '\t', '<', '\n', '\r']) {
        let words = if text.is_empty() { Vec::new() } else { vec![text.to_owned()] };
        return Ok(Expanded { text: text.to_owned(), words, ..Expanded::default() });
    }
    let mut expander = Expander {
        rest: text.chars().peekable(),
        escape,
        quotes,
        variables,
        depth: 0,
        used: BTreeSet::new(),
        missing: BTreeSet::new(),
    };
    match expander.until(None, quotes == Quotes::Keep) {
        Ok((done, words)) => {
            Ok(Expanded { text: done, words, used: expander.used, missing: expander.missing })
        }
        Err(reason) => Err(ExpandError { text: text.to_owned(), reason }),
    }
}

struct Expander<'a> {
    rest: Peekable<Chars<'a>>,
    escape: char,
    quotes: Quotes,
    variables: &'a dyn Lookup,
    depth: usize,
    used: BTreeSet<String>,
    missing: BTreeSet<String>,
}

/// Splits what is pushed at blanks.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    current: String,
}

impl Words {
    fn push(&mut self, c: char) {
        if c.is_whitespace() {
            self.end();
        } else {
            self.current.push(c);
        }
    }

    fn end(&mut self) {
        if !self.current.is_empty() {
            self.done.push(std::mem::take(&mut self.current));
        }
    }
}

impl Expander<'_> {
    /// Expands up to `stop` (which is consumed) or the end.
    fn until(
        &mut self,
        stop: Option<char>,
        raw_escapes: bool,
    ) -> Result<(String, Vec<String>), String> {
        let mut out = String::new();
        let mut words = Words::default();
        while let Some(&c) = self.rest.peek() {
            if Some(c) == stop {
                self.rest.next();
                words.end();
                return Ok((out, words.done));
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|c| words.push(c));
                    out.push_str(&value);
                }
                '<' => {
                    let text = self.heredoc_mark();
                    words.current.push_str(&text);
                    out.push_str(&text);
                }
                '\'' | '"' if self.quotes != Quotes::Ordinary => {
                    let text = if c == '\'' { self.single()? } else { self.double(raw_escapes)? };
                    words.current.push_str(&text);
                    out.push_str(&text);
                }
                c if c == self.escape => {
                    self.rest.next();
                    if raw_escapes {
                        words.current.push(c);
                        out.push(c);
                    }
                    let Some(escaped) = self.rest.next() else { break };
                    words.current.push(escaped);
                    out.push(escaped);
                }
                c => {
                    self.rest.next();
                    words.push(c);
                    out.push(c);
                }
            }
            check_size(out.len())?;
        }
        match stop {
            Some(stop) => {
                Err(format!("unexpected end of statement while looking for matching {stop}"))
            }
            None => {
                words.end();
                Ok((out, words.done))
            }
        }
    }

    /// `<<` takes the blanks behind it into its word, so that `<< EOF` is one word.
    fn heredoc_mark(&mut self) -> String {
        self.rest.next();
        let mut text = "<".to_owned();
        if self.rest.next_if_eq(&'<').is_some() {
            text.push('<');
            while let Some(blank) = self.rest.next_if(|c| matches!(c, '\t' | '\r' | ' ')) {
                text.push(blank);
            }
        }
        text
    }

    fn single(&mut self) -> Result<String, String> {
        let mut out = String::new();
        let keep = self.quotes == Quotes::Keep;
        let quote = self.rest.next().filter(|_| keep);
        out.extend(quote);
        loop {
            match self.rest.next() {
                None => {
                    return Err(
                        "unexpected end of statement while looking for matching single-quote"
                            .into(),
                    );
                }
                Some('\'') => {
                    out.extend(quote);
                    return Ok(out);
                }
                Some(c) => out.push(c),
            }
        }
    }

    fn double(&mut self, raw_escapes: bool) -> Result<String, String> {
        let mut out = String::new();
        let keep = self.quotes == Quotes::Keep;
        let quote = self.rest.next().filter(|_| keep);
        out.extend(quote);
        loop {
            match self.rest.peek().copied() {
                None => {
                    return Err(
                        "unexpected end of statement while looking for matching double-quote"
                            .into(),
                    );
                }
                Some('"') => {
                    self.rest.next();
                    out.extend(quote);
                    return Ok(out);
                }
                Some('$') => {
                    out.push_str(&self.dollar()?);
                    check_size(out.len())?;
                }
                Some(c) => {
                    self.rest.next();
                    if c != self.escape {
                        out.push(c);
                        continue;
                    }
                    let next = self.rest.peek().copied();
                    let special = matches!(next, Some('"' | '$')) || next == Some(self.escape);
                    if raw_escapes || (next.is_some() && !special) {
                        out.push(c);
                    }
                    if special {
                        out.extend(self.rest.next());
                    }
                }
            }
        }
    }

    fn dollar(&mut self) -> Result<String, String> {
        self.rest.next();
        if self.rest.peek() != Some(&'{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.value(&name) {
                None if self.quotes.keeps_unset() => format!("${name}"),
                value => value.unwrap_or_default(),
            });
        }
        self.rest.next();
        match self.rest.peek() {
            None => return Err("syntax error: missing '}'".into()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".into()),
            Some(_) => {}
        }
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("substitutions are nested more than {DEPTH_MAX} deep"));
        }
        let result = self.braces();
        self.depth -= 1;
        result
    }

    /// Behind `${`.
    fn braces(&mut self) -> Result<String, String> {
        let name = self.name();
        let Some(mark) = self.rest.next() else {
            return Err("unsupported modifier () in substitution".into());
        };
        match mark {
            '}' => Ok(match self.value(&name) {
                None if self.quotes.keeps_unset() => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            }),
            ':' => {
                let operator = self.rest.next();
                match operator {
                    Some(operator @ ('+' | '-' | '?')) => {
                        self.default_operator(&name, operator, true)
                    }
                    other => {
                        let shown: String = std::iter::once(':').chain(other).collect();
                        Err(format!("unsupported modifier ({shown}) in substitution"))
                    }
                }
            }
            '+' | '-' | '?' => self.default_operator(&name, mark, false),
            '#' | '%' => self.trim_operator(&name, mark),
            '/' => self.replace_operator(&name),
            other => Err(format!("unsupported modifier ({other}) in substitution")),
        }
    }

    /// The text up to `stop`; an end of the text is told as what is missing.
    fn operand(&mut self, stop: char, raw_escapes: bool, missing: char) -> Result<String, String> {
        match self.until(Some(stop), raw_escapes) {
            Ok((text, _)) => Ok(text),
            Err(_) if self.rest.peek().is_none() => Err(if missing == '}' {
                "syntax error: missing '}'".to_owned()
            } else {
                format!("syntax error: missing '{missing}' in ${{}}")
            }),
            Err(reason) => Err(reason),
        }
    }

    fn default_operator(
        &mut self,
        name: &str,
        operator: char,
        null_is_unset: bool,
    ) -> Result<String, String> {
        let word = self.operand('}', false, '}')?;
        let value = self.value(name);
        if value.is_none() && self.quotes.keeps_unset() {
            let colon = if null_is_unset { ":" } else { "" };
            return Ok(format!("${{{name}{colon}{operator}{word}}}"));
        }
        let missing = match &value {
            None => Some("is not allowed to be unset"),
            Some(value) if null_is_unset && value.is_empty() => Some("is not allowed to be empty"),
            Some(_) => None,
        };
        match (operator, missing) {
            ('-', Some(_)) => Ok(word),
            ('+', Some(_)) => Ok(String::new()),
            ('+', None) => Ok(word),
            ('?', Some(default)) => {
                Err(format!("{name}: {}", if word.is_empty() { default } else { &word }))
            }
            _ => Ok(value.unwrap_or_default()),
        }
    }

    fn trim_operator(&mut self, name: &str, operator: char) -> Result<String, String> {
        let word = self.operand('}', true, '}')?;
        let value = self.value(name);
        if value.is_none() && self.quotes.keeps_unset() {
            return Ok(format!("${{{name}{operator}{word}}}"));
        }
        let value = value.unwrap_or_default();
        let (pattern, greedy) = match word.strip_prefix(operator) {
            Some(pattern) => (pattern, true),
            None => (word.as_str(), false),
        };
        if operator == '#' {
            return trim_prefix(pattern, &value, greedy);
        }
        // The shortest match at the end is the shortest one at the start of everything reversed.
        let reversed: String = value.chars().rev().collect();
        let trimmed = trim_prefix(&reverse_pattern(pattern), &reversed, greedy)?;
        Ok(trimmed.chars().rev().collect())
    }

    fn replace_operator(&mut self, name: &str) -> Result<String, String> {
        let all = self.rest.next_if_eq(&'/').is_some();
        let pattern = self.operand('/', true, '/')?;
        let replacement = self.operand('}', true, '}')?;
        let value = self.value(name);
        if value.is_none() && self.quotes.keeps_unset() {
            return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
        }
        let value = value.unwrap_or_default();
        let regex = shell_pattern(&pattern, true, false)?;
        if all {
            return replace_all(&regex, &value, &replacement);
        }
        Ok(match regex.find(&value) {
            Some(found) => {
                format!("{}{replacement}{}", &value[..found.start()], &value[found.end()..])
            }
            None => value,
        })
    }

    /// Letters, digits and `_`; or digits alone; or one special parameter, which is never set.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.rest.peek() {
            Some(c) if c.is_numeric() => {
                while let Some(digit) = self.rest.next_if(|c| c.is_numeric()) {
                    name.push(digit);
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => name.extend(self.rest.next()),
            _ => {
                while let Some(c) = self.rest.next_if(|&c| c.is_alphanumeric() || c == '_') {
                    name.push(c);
                }
            }
        }
        name
    }

    fn value(&mut self, name: &str) -> Option<String> {
        let value = self.variables.get(name).map(str::to_owned);
        let seen = if value.is_some() { &mut self.used } else { &mut self.missing };
        seen.insert(name.to_owned());
        value
    }
}

fn check_size(bytes: usize) -> Result<(), String> {
    if bytes > EXPANDED_BYTES_MAX {
        return Err(format!("the value grows beyond {EXPANDED_BYTES_MAX} bytes"));
    }
    Ok(())
}

/// Replaces every match; `$0` in the replacement stands for it, as with BuildKit.
fn replace_all(regex: &Regex, value: &str, replacement: &str) -> Result<String, String> {
    let references = replacement.matches('$').count();
    let mut out = String::new();
    let mut done = 0;
    for captures in regex.captures_iter(value) {
        let found = captures.get_match();
        out.push_str(&value[done..found.start()]);
        check_size(out.len() + replacement.len() + references.saturating_mul(found.len()))?;
        captures.expand(replacement, &mut out);
        done = found.end();
    }
    out.push_str(&value[done..]);
    Ok(out)
}

fn trim_prefix(pattern: &str, value: &str, greedy: bool) -> Result<String, String> {
    let regex = shell_pattern(pattern, greedy, true)?;
    Ok(match regex.find(value) {
        Some(found) => value[found.end()..].to_owned(),
        None => value.to_owned(),
    })
}

/// A shell pattern with `*` and `?` alone, as a regular expression.
fn shell_pattern(pattern: &str, greedy: bool, anchored: bool) -> Result<Regex, String> {
    let bad = |why: &str| format!("invalid pattern ({pattern}) in substitution: {why}");
    let mut out = String::from(if anchored { "^" } else { "" });
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' => out.push_str(if greedy { ".*" } else { ".*?" }),
            '?' => out.push('.'),
            '\\' => match chars.next() {
                Some(c @ ('}' | '/')) => out.push_str(&regex::escape(&c.to_string())),
                Some(c @ ('*' | '?' | '\\')) => {
                    out.push('\\');
                    out.push(c);
                }
                other => {
                    let shown: String = other.into_iter().collect();
                    return Err(bad(&format!("invalid escape '\\{shown}'")));
                }
            },
            c => out.push_str(&regex::escape(&c.to_string())),
        }
    }
    Regex::new(&out).map_err(|_| bad("too large"))
}

/// The pattern backwards, escapes before what they escape.
fn reverse_pattern(pattern: &str) -> String {
    let mut pieces = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        let mut piece = c.to_string();
        if c == '\\' {
            piece.extend(chars.next());
        }
        pieces.push(piece);
    }
    pieces.into_iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::{Lookup, NoVariables, Quotes, expand};

    struct Table;

    impl Lookup for Table {
        fn get(&self, name: &str) -> Option<&str> {
            match name {
                "set" => Some("value"),
                "empty" => Some(""),
                "path" => Some("a/b/c.tar.gz"),
                "star" => Some("x*y"),
                _ => None,
            }
        }
    }

    fn check(text: &str, expect: &str) {
        let got = expand(text, '\\', Quotes::Process, &Table).map(|e| e.text);
        assert_eq!(got.as_deref(), Ok(expect), "{text}");
    }

    fn fails(text: &str, word: &str) {
        let error = expand(text, '\\', Quotes::Process, &Table).expect_err(text).to_string();
        assert!(error.contains(word), "{text}: {error}");
    }

    #[test]
    fn every_operator() {
        for (text, expect) in [
            ("$set ${set}", "value value"),
            ("$unset|${unset}", "|"),
            ("$ $/ $set/x", "$ $/ value/x"),
            ("${unset:-d} ${empty:-d} ${set:-d}", "d d value"),
            ("${unset-d} ${empty-d}", "d "),
            ("${unset:+d} ${empty:+d} ${set:+d}", "  d"),
            ("${empty+d}", "d"),
            ("${set:?m} ${set?m}", "value value"),
            ("${unset:-${empty:-$set}}", "value"),
            ("${path#*/} ${path##*/}", "b/c.tar.gz c.tar.gz"),
            ("${path%.*} ${path%%.*}", "a/b/c.tar a/b/c"),
            ("${path/b/X} ${path//./-}", "a/X/c.tar.gz a/b/c-tar-gz"),
            ("${star#x\\*}", "y"),
            ("${path//\\//_}", "a_b_c.tar.gz"),
            ("$1 $@ $$", "  "),
        ] {
            check(text, expect);
        }
    }

    #[test]
    fn quotes_and_escapes() {
        for (text, expect) in [
            ("'$set'", "$set"),
            ("\"$set\"", "value"),
            ("\"a\\\"b\\$set\\\\ \\n\"", "a\"b$set\\ \\n"),
            ("\\$set", "$set"),
            ("a\\", "a"),
            ("'a\\'", "a\\"),
        ] {
            check(text, expect);
        }
        let ordinary =
            expand("'$set' \"x\" \\$set", '\\', Quotes::Ordinary, &Table).expect("valid");
        assert_eq!(ordinary.text, "'value' \"x\" $set");
    }

    #[test]
    fn errors_are_buildkits() {
        fails("${unset:?gone}", "unset: gone");
        fails("${unset?}", "is not allowed to be unset");
        fails("${empty:?}", "is not allowed to be empty");
        fails("${set", "unsupported modifier");
        fails("${", "missing '}'");
        fails("${set:-a", "missing '}'");
        fails("${}", "bad substitution");
        fails("${set^^}", "unsupported modifier (^)");
        fails("${set:=a}", "unsupported modifier (:=)");
        fails("${set/a}", "missing '/' in ${}");
        fails("'a", "single-quote");
        fails("\"a", "double-quote");
        fails("${path#\\a}", "invalid escape");
    }

    #[test]
    fn hostile_texts_end() {
        fails(&"${a:-".repeat(100_000), "nested");
        fails(&format!("{}{}", "${a:-".repeat(65), "}".repeat(65)), "nested");
    }

    #[test]
    fn words_and_names() {
        let words = expand("a \"b c\" $set 'd'", '\\', Quotes::Process, &Table).expect("valid");
        assert_eq!(words.words, ["a", "b c", "value", "d"]);
        assert!(words.used.contains("set"));
        let keep =
            expand("cat << 'E F' $x \"q r\"", '\\', Quotes::Keep, &NoVariables).expect("valid");
        assert_eq!(keep.words, ["cat", "<< 'E F'", "$x", "\"q r\""]);
        assert!(keep.missing.contains("x"));
    }
}
