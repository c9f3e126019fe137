//! Physical lines to logical ones: directives, comments, continuations and heredoc bodies are taken
//! out here, so that the grammar sees plain lines. A logical line knows where each of its bytes
//! stands in the file.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use crate::diagnostic::Diagnostic;
use crate::directive::{Directive, DirectiveReader};
use crate::expand::{NoVariables, Quotes, expand};
use crate::grammar;
use crate::source::{Source, Span};

/// `[fd]<<[-]WORD`, as BuildKit tells it.
static HEREDOC: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^\d*<<(-?)\s*([^<]*)$").expect("the pattern is valid"));

/// A comment line above an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comment {
    /// What stands behind `#`, trimmed.
    pub text: String,
    /// The line, from `#` on.
    pub span: Span,
}

/// An inline document of RUN, COPY or ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends it, without quotes.
    pub name: String,
    /// Whether variables in it are expanded (COPY and ADD): the word had no quotes.
    pub expand: bool,
    /// `<<-`: leading tabs vanish.
    pub chomp: bool,
    /// The body as it stands in the file, line ends included.
    pub content: String,
    /// Body and last line in the file.
    pub span: Span,
}

impl Heredoc {
    /// The body as the instruction means it: without leading tabs where `<<-` says so.
    #[must_use]
    pub fn text(&self) -> String {
        if !self.chomp {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// One instruction's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalLine {
    /// The joined text, comments and line ends taken out.
    pub text: String,
    /// From the keyword to the end of the last heredoc.
    pub span: Span,
    /// Comments directly above.
    pub comments: Vec<Comment>,
    /// The bodies that belong to it, in order.
    pub heredocs: Vec<Heredoc>,
    /// For each piece: where it starts in `text`, where in the file.
    pieces: Vec<(usize, usize)>,
}

impl LogicalLine {
    /// The place in the file of a range of [`Self::text`].
    #[must_use]
    pub fn place(&self, range: &Range<usize>) -> Span {
        let start = self.offset(range.start);
        if range.is_empty() {
            return Span::new(start, start);
        }
        Span::new(start, self.offset(range.end - 1) + 1)
    }

    fn offset(&self, at: usize) -> usize {
        let piece = self.pieces.partition_point(|&(start, _)| start <= at).saturating_sub(1);
        self.pieces
            .get(piece)
            .map_or(self.span.start as usize, |&(start, source)| source + (at - start))
    }
}

/// A file as logical lines.
#[derive(Debug)]
pub struct Lines {
    /// `# key=value` at the top.
    pub directives: Vec<Directive>,
    /// The escape character in force.
    pub escape: char,
    /// The instructions' texts.
    pub lines: Vec<LogicalLine>,
    /// Blank lines inside of continued instructions, which some day may be errors.
    pub blank_continuations: Vec<Span>,
}

/// Cuts a file into logical lines. What cannot be read is reported and left out.
#[must_use]
pub fn logical_lines(source: &Source) -> (Lines, Vec<Diagnostic>) {
    let mut reader = Reader {
        physical: physical_lines(source.text()),
        next: 0,
        directives: DirectiveReader::default(),
        diagnostics: Vec::new(),
        blanks: Vec::new(),
    };
    let mut lines = Vec::new();
    let mut comments = Vec::new();
    while let Some(line) = reader.take() {
        let trimmed = line.text.trim_start();
        if reader.directive(&line) {
            continue;
        }
        if let Some(comment) = trimmed.strip_prefix('#') {
            let start = line.start + (line.text.len() - trimmed.len());
            let text = comment.trim().to_owned();
            if text.is_empty() {
                comments.clear();
            } else {
                comments
                    .push(Comment { text, span: Span::new(start, line.start + line.text.len()) });
            }
            continue;
        }
        if trimmed.is_empty() {
            continue;
        }
        if let Some(logical) = reader.logical(&line, std::mem::take(&mut comments)) {
            lines.push(logical);
        }
    }
    let (directives, escape) = reader.directives.finish();
    (Lines { directives, escape, lines, blank_continuations: reader.blanks }, reader.diagnostics)
}

/// A physical line; `text` has no line end, `whole` has.
#[derive(Clone, Copy)]
struct Physical<'a> {
    text: &'a str,
    whole: &'a str,
    start: usize,
}

fn physical_lines(text: &str) -> Vec<Physical<'_>> {
    let mut start = 0;
    let mut lines = Vec::new();
    for whole in text.split_inclusive('\n') {
        let mut line = Physical { text: whole.trim_end_matches(['\r', '\n']), whole, start };
        if let (0, Some(rest)) = (start, line.text.strip_prefix('\u{feff}')) {
            line.text = rest;
            line.start = '\u{feff}'.len_utf8();
        }
        start += whole.len();
        lines.push(line);
    }
    lines
}

struct Reader<'a> {
    physical: Vec<Physical<'a>>,
    next: usize,
    directives: DirectiveReader,
    diagnostics: Vec<Diagnostic>,
    blanks: Vec<Span>,
}

impl<'a> Reader<'a> {
    fn take(&mut self) -> Option<Physical<'a>> {
        let line = self.physical.get(self.next).copied();
        self.next += 1;
        line
    }

    fn directive(&mut self, line: &Physical<'_>) -> bool {
        match self.directives.read(line.text.trim_start(), line.start) {
            Ok(found) => found,
            Err(diagnostic) => {
                self.diagnostics.push(diagnostic);
                true
            }
        }
    }

    /// Joins continuation lines and takes the heredocs behind them.
    fn logical(&mut self, first: &Physical<'a>, comments: Vec<Comment>) -> Option<LogicalLine> {
        let escape = self.directives.escape();
        let mut line = LogicalLine {
            text: String::new(),
            span: Span::new(0, 0),
            comments,
            heredocs: Vec::new(),
            pieces: Vec::new(),
        };
        let mut current = Some((first.text, first.start));
        while let Some((mut text, mut start)) = current {
            if line.text.is_empty() {
                start += text.len() - text.trim_start().len();
                text = text.trim_start();
            }
            let body = continued(text, escape);
            if line.pieces.is_empty() {
                line.span = Span::new(start, start);
            }
            line.pieces.push((line.text.len(), start));
            line.text.push_str(body.unwrap_or(text));
            line.span.end = Span::new(0, start + text.len()).end;
            if body.is_none() {
                break;
            }
            current = self.next_continuation().map(|next| (next.text, next.start));
        }
        if line.text.trim().is_empty() {
            return None;
        }
        self.heredocs(&mut line, escape).then_some(line)
    }

    /// The next line of a continued instruction: comments inside it vanish, blank lines as well.
    fn next_continuation(&mut self) -> Option<Physical<'a>> {
        while let Some(line) = self.take() {
            let trimmed = line.text.trim();
            if trimmed.is_empty() {
                self.blanks.push(Span::new(line.start, line.start + line.text.len()));
            } else if !trimmed.starts_with('#') {
                return Some(line);
            }
        }
        None
    }

    /// Takes the documents that the line announces; false where one has no end.
    fn heredocs(&mut self, line: &mut LogicalLine, escape: char) -> bool {
        for mark in heredoc_marks(&line.text, escape) {
            let start = self.physical.get(self.next).map_or(line.span.end as usize, |l| l.start);
            let mut content = String::new();
            let mut end = None;
            while let Some(body) = self.take() {
                let text = body.whole.trim_end_matches(['\r', '\n']);
                let text = if mark.chomp { text.trim_start_matches('\t') } else { text };
                if text == mark.name {
                    end = Some(body.start + body.text.len());
                    break;
                }
                content.push_str(body.whole);
            }
            let Some(end) = end else {
                let help = format!("end the document with a line `{}`", mark.name);
                self.diagnostics
                    .push(Diagnostic::error(line.span, "unterminated heredoc").help(help));
                return false;
            };
            let span = Span::new(start, end);
            line.span.end = span.end;
            line.heredocs.push(Heredoc { content, span, ..mark });
        }
        true
    }
}

/// The line without its continuation mark, where it has one: the escape character at the end of the
/// line, blanks behind it allowed, no other escape character before it.
pub(crate) fn continued(line: &str, escape: char) -> Option<&str> {
    let body = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    (!body.ends_with(escape)).then_some(body)
}

/// The heredocs that a logical line announces.
fn heredoc_marks(text: &str, escape: char) -> Vec<Heredoc> {
    if !text.contains("<<") || !can_hold_heredoc(text, escape) {
        return Vec::new();
    }
    let Ok(expanded) = expand(text, '\\', Quotes::Keep, &NoVariables) else { return Vec::new() };
    expanded.words.iter().filter_map(|word| heredoc_word(word)).collect()
}

/// RUN, COPY, ADD and ONBUILD of them, but not in the exec form.
fn can_hold_heredoc(text: &str, escape: char) -> bool {
    let Some(statement) = grammar::statement(text, escape) else { return false };
    let rest = &text[statement.rest];
    match statement.keyword.text.to_ascii_uppercase().as_str() {
        "RUN" | "COPY" | "ADD" => !matches!(grammar::json(rest), grammar::Json::Strings(_)),
        "ONBUILD" if rest.len() < text.len() => can_hold_heredoc(rest, escape),
        _ => false,
    }
}

/// Reads `<<EOF`, `<<-"EOF"`, `3<<EOF`; `None` for any other word.
#[must_use]
pub fn heredoc_word(word: &str) -> Option<Heredoc> {
    let found = HEREDOC.captures(word)?;
    let rest = &found[2];
    let plain = expand(rest, '\\', Quotes::Name, &NoVariables).ok()?;
    let raw = expand(rest, '\\', Quotes::Keep, &NoVariables).ok()?;
    let ([name], [raw]) = (plain.words.as_slice(), raw.words.as_slice()) else { return None };
    let quotes = |word: &str| word.matches(['\'', '"']).count();
    Some(Heredoc {
        name: name.clone(),
        expand: quotes(name) == quotes(raw),
        chomp: !found[1].is_empty(),
        content: String::new(),
        span: Span::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::{continued, heredoc_word, logical_lines};
    use crate::source::Source;

    fn texts(text: &str) -> Vec<String> {
        let source = Source::new("Dockerfile", text.to_owned());
        logical_lines(&source).0.lines.into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn continuations_join() {
        for (line, expect) in [
            ("a \\", Some("a ")),
            ("a \\  \t", Some("a ")),
            ("\\", Some("")),
            ("a \\\\", None),
            ("a \\\\\\", None),
            ("a", None),
        ] {
            assert_eq!(continued(line, '\\'), expect, "{line:?}");
        }
        assert_eq!(texts("RUN a \\\n  # c \\\n\n  b\nRUN c \\"), ["RUN a   b", "RUN c "]);
        assert_eq!(texts("# escape=`\nRUN a `\nb \\\n"), ["RUN a b \\"]);
    }

    #[test]
    fn places_survive_joining() {
        let text = "FROM a\n  RUN x \\\n   # c\n yz\n";
        let source = Source::new("Dockerfile", text.to_owned());
        let (lines, _) = logical_lines(&source);
        let run = &lines.lines[1];
        let at = run.text.find("yz").expect("joined");
        assert_eq!(&text[run.place(&(at..at + 2)).range()], "yz");
        assert_eq!(&text[run.span.range()], "RUN x \\\n   # c\n yz");
    }

    #[test]
    fn heredocs_are_taken() {
        let text = "RUN <<A cat && <<-\"B\"\na $x\nA\n\tb\n\tB\nCOPY \"<<X\" y\n";
        let source = Source::new("Dockerfile", text.to_owned());
        let (lines, diagnostics) = logical_lines(&source);
        assert!(diagnostics.is_empty(), "{diagnostics:?}");
        let docs = &lines.lines[0].heredocs;
        assert_eq!(docs.len(), 2);
        assert_eq!(
            (docs[0].content.as_str(), docs[0].expand, docs[0].chomp),
            ("a $x\n", true, false)
        );
        assert_eq!((docs[1].text().as_str(), docs[1].expand, docs[1].chomp), ("b\n", false, true));
        assert_eq!(lines.lines.len(), 2);
        let source = Source::new("Dockerfile", "RUN <<EOF\na\n".to_owned());
        assert_eq!(logical_lines(&source).1[0].message, "unterminated heredoc");
    }

    #[test]
    fn heredoc_words() {
        for (word, name) in [
            ("<<EOF", Some("EOF")),
            ("3<<-EOF", Some("EOF")),
            ("<< EOF", Some("EOF")),
            ("<<'E F'", Some("E F")),
            ("<<$E", Some("$E")),
            ("<<a${E}'b'", Some("a${E}b")),
            ("<<", None),
            ("<<<a", None),
            ("a<<EOF", None),
        ] {
            assert_eq!(heredoc_word(word).map(|h| h.name).as_deref(), name, "{word}");
        }
    }
}
