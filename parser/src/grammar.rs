//! The pest grammar of `dockerfile.pest` behind plain functions. Offsets count in the logical line.

use std::ops::Range;

use pest::Parser;
use pest::iterators::Pair;
use pest_derive::Parser;

use crate::json;

/// The generated parser; see `dockerfile.pest`.
#[derive(Parser)]
#[grammar = "dockerfile.pest"]
struct Grammar;

/// A piece of a logical line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// Its value, quotes and escapes taken away where the rule says so.
    pub(crate) text: String,
    /// Where it stands in the logical line, in bytes.
    pub(crate) range: Range<usize>,
}

/// `KEYWORD [--flag…] rest`.
#[derive(Debug)]
pub(crate) struct StatementTokens {
    /// The instruction's name as written.
    pub(crate) keyword: Token,
    /// The leading `--name[=value]` words.
    pub(crate) flags: Vec<Token>,
    /// Everything behind them.
    pub(crate) rest: Range<usize>,
}

/// An exec form.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Json {
    /// An array of strings.
    Strings(Vec<Token>),
    /// Valid JSON, but an element is no string: an error in a Dockerfile.
    NotStrings,
    /// Not JSON: it is a shell command or a list of words.
    Text,
}

/// Splits a logical line; `None` for a blank one.
pub(crate) fn statement(line: &str, escape: char) -> Option<StatementTokens> {
    let input = format!("{escape}{line}");
    let offset = escape.len_utf8();
    let pair = Grammar::parse(Rule::statement, &input).ok()?.next()?;
    let (mut keyword, mut flags, mut rest) = (None, Vec::new(), line.len()..line.len());
    for part in pair.into_inner() {
        match part.as_rule() {
            Rule::keyword => keyword = Some(token(&part, offset)),
            Rule::flag => flags.push(flag(&part, offset, escape)),
            Rule::rest => rest = range(&part, offset),
            _ => {}
        }
    }
    let trimmed = line[rest.clone()].trim_end().len();
    Some(StatementTokens { keyword: keyword?, flags, rest: rest.start..rest.start + trimmed })
}

/// Words that quotes keep together; quotes and escapes stay in them.
pub(crate) fn words(text: &str, escape: char) -> Vec<Token> {
    let input = format!("{escape}{text}");
    let offset = escape.len_utf8();
    let Ok(mut pairs) = Grammar::parse(Rule::words, &input) else { return Vec::new() };
    let Some(pair) = pairs.next() else { return Vec::new() };
    pair.into_inner()
        .filter(|part| part.as_rule() == Rule::word)
        .map(|part| {
            let mut word = token(&part, offset);
            drop_lone_escape(&mut word.text, escape);
            word
        })
        .filter(|word| !word.text.is_empty())
        .collect()
}

/// Words between blanks.
pub(crate) fn list(text: &str) -> Vec<Token> {
    let Ok(mut pairs) = Grammar::parse(Rule::list, text) else { return Vec::new() };
    let Some(pair) = pairs.next() else { return Vec::new() };
    pair.into_inner()
        .filter(|part| part.as_rule() == Rule::item)
        .map(|part| token(&part, 0))
        .collect()
}

/// The exec form.
pub(crate) fn json(text: &str) -> Json {
    let trimmed = text.trim_start();
    if !trimmed.starts_with('[') {
        return Json::Text;
    }
    let Ok(mut pairs) = Grammar::parse(Rule::json, text) else {
        return if json::is_valid(trimmed) { Json::NotStrings } else { Json::Text };
    };
    let strings = pairs.next().into_iter().flat_map(Pair::into_inner);
    let strings = strings.filter(|part| part.as_rule() == Rule::json_string);
    let token = |part: Pair<'_, Rule>| {
        let inner = part.as_str();
        Token { text: unescape(&inner[1..inner.len() - 1]), range: range(&part, 0) }
    };
    Json::Strings(strings.map(token).collect())
}

fn range(pair: &Pair<'_, Rule>, offset: usize) -> Range<usize> {
    let span = pair.as_span();
    span.start() - offset..span.end() - offset
}

fn token(pair: &Pair<'_, Rule>, offset: usize) -> Token {
    Token { text: pair.as_str().to_owned(), range: range(pair, offset) }
}

/// A flag with quotes and escapes taken away.
fn flag(pair: &Pair<'_, Rule>, offset: usize, escape: char) -> Token {
    let mut text = "--".to_owned();
    push_flag_text(pair.clone(), escape, &mut text);
    Token { text, range: range(pair, offset) }
}

fn push_flag_text(pair: Pair<'_, Rule>, escape: char, text: &mut String) {
    for part in pair.into_inner() {
        match part.as_rule() {
            Rule::flag_quoted => push_flag_text(part, escape, text),
            Rule::flag_escaped => {
                text.push_str(part.as_str().strip_prefix(escape).unwrap_or_default())
            }
            _ => text.push_str(part.as_str()),
        }
    }
}

/// The blanks that separate words of a list.
pub(crate) fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

/// A lone escape character at the very end of a line stands for nothing.
fn drop_lone_escape(word: &mut String, escape: char) {
    let escapes = word.chars().rev().take_while(|&c| c == escape).count();
    if escapes % 2 == 1 {
        word.pop();
    }
}

/// JSON string escapes (RFC 8259 section 7). A lone surrogate becomes U+FFFD, as in Go.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('u') => out.push(unicode_escape(&mut chars)),
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
}

fn unicode_escape(chars: &mut std::str::Chars<'_>) -> char {
    let high = hex4(chars);
    if !(0xD800..0xDC00).contains(&high) {
        return char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER);
    }
    let mut ahead = chars.clone();
    if ahead.next() == Some('\\') && ahead.next() == Some('u') {
        let low = hex4(&mut ahead);
        if (0xDC00..0xE000).contains(&low) {
            *chars = ahead;
            let code = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
            return char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
        }
    }
    char::REPLACEMENT_CHARACTER
}

fn hex4(chars: &mut std::str::Chars<'_>) -> u32 {
    chars.by_ref().take(4).fold(0, |code, c| code * 16 + c.to_digit(16).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::{Json, json, list, statement, words};

    fn texts(tokens: &[super::Token]) -> Vec<&str> {
        tokens.iter().map(|t| t.text.as_str()).collect()
    }

    #[test]
    fn statements_have_flags() {
        for (line, keyword, flags, rest) in [
            ("RUN a b", "RUN", vec![], "a b"),
            (
                "  copy --from=x  --chown=\"a b\" s d ",
                "copy",
                vec!["--from=x", "--chown=a b"],
                "s d",
            ),
            (
                "RUN --mount=type=cache,target=/a -- --x",
                "RUN",
                vec!["--mount=type=cache,target=/a"],
                "--x",
            ),
            ("RUN --a='x y'z\\ w q", "RUN", vec!["--a=x yz w"], "q"),
            ("CMD", "CMD", vec![], ""),
            ("CMD --", "CMD", vec![], ""),
            ("RUN --x=\"open", "RUN", vec!["--x=open"], ""),
        ] {
            let got = statement(line, '\\').expect(line);
            assert_eq!(got.keyword.text, keyword, "{line}");
            assert_eq!(texts(&got.flags), flags, "{line}");
            assert_eq!(&line[got.rest], rest, "{line}");
        }
        assert!(statement("  ", '\\').is_none());
    }

    #[test]
    fn words_keep_quotes() {
        for (text, expect) in [
            ("a=1 b=\"x y\" c='p q'", vec!["a=1", "b=\"x y\"", "c='p q'"]),
            ("a=x\\ y b", vec!["a=x\\ y", "b"]),
            ("a=\"x\\\" y\"", vec!["a=\"x\\\" y\""]),
            ("a='it", vec!["a='it"]),
            ("a=\"open b", vec!["a=\"open b"]),
            ("a\\", vec!["a"]),
            ("", vec![]),
        ] {
            assert_eq!(texts(&words(text, '\\')), expect, "{text}");
        }
        assert_eq!(texts(&words("a=x` y", '`')), ["a=x` y"]);
    }

    #[test]
    fn lists_split_at_blanks() {
        assert_eq!(texts(&list(" a\t b  c ")), ["a", "b", "c"]);
    }

    #[test]
    fn exec_forms() {
        let strings = |text: &str| match json(text) {
            Json::Strings(tokens) => tokens.into_iter().map(|t| t.text).collect::<Vec<_>>(),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(strings("[ \"a\" , \"b\\n\\u0041\\ud83d\\ude00\" ] "), ["a", "b\nA😀"]);
        assert!(strings("[]").is_empty());
        for text in ["[\"a\", 1]", "[[\"a\"]]", "[{\"a\": [1]}]", "[null]", "[[[[[1]]]]]"] {
            assert_eq!(json(text), Json::NotStrings, "{text}");
        }
        for text in ["['a']", "[\"a\"", "[\"a\",]", "[\"a\"] b", "[ -f x ]", "a", "[\"\t\"]"] {
            assert_eq!(json(text), Json::Text, "{text}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(json(&deep), Json::Text);
    }
}
