//! Lines of a file with those at fault marked, in the form that BuildKit prints.

use std::fmt::Write as _;

use kiln_parser::source::{Source, Span};

const RULER: &str = "--------------------";

/// `Dockerfile:3`, and the lines around, the meant ones behind `>>>`.
pub(super) fn excerpt(source: &Source, span: Span) -> String {
    let (first, last) = super::lines(source, span);
    let lines: Vec<&str> = source.text().split('\n').collect();
    let (mut start, mut end) = (first, last.min(lines.len()));
    let around = if start == end { 4 } else { 2 };
    let mut added = 0;
    while added < around {
        if start > 1 {
            start -= 1;
            added += 1;
        }
        if end < lines.len() {
            end += 1;
            added += 1;
        }
        added += 1;
    }
    let mut text = format!("{}:{first}\n{RULER}\n", source.name());
    for number in start..=end {
        let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
        let line = lines.get(number - 1).unwrap_or(&"").trim_end_matches('\r');
        let shown = crate::progress::printable(line.as_bytes());
        let _infallible = writeln!(text, " {number:3} | {mark} {shown}");
    }
    text + RULER + "\n"
}

#[cfg(test)]
mod tests {
    use kiln_parser::source::{Source, Span};

    use super::excerpt;

    #[test]
    fn marks_the_lines() {
        let source = Source::new("f", "a\nb\nc\nd\ne\nf\n".to_owned());
        let expect = "f:2\n--------------------\n   1 |     a\n   2 | >>> b\n   3 |     c\n   4 |     d\n--------------------\n";
        assert_eq!(excerpt(&source, Span::new(2, 3)), expect);
    }
}
