//! Source text, byte spans in it, and their lines and columns.

use std::fmt;
use std::ops::Range;

/// A half-open range of bytes in a [`Source`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One behind the last byte.
    pub end: u32,
}

impl Span {
    /// A span from byte offsets. Offsets beyond 4 GiB do not occur: [`Source::new`] cuts there.
    #[must_use]
    pub fn new(start: usize, end: usize) -> Self {
        let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self { start: clamp(start), end: clamp(end.max(start)) }
    }

    /// The span as a range of `usize`, for slicing.
    #[must_use]
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    /// The smallest span that holds both.
    #[must_use]
    pub fn to(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

/// A place in a text as people count: both from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in Unicode scalar values.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A text with a name and an index of its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    name: String,
    text: String,
    line_starts: Vec<u32>,
}

impl Source {
    /// Takes a text; `name` is what errors call it. A text beyond 4 GiB is cut there.
    #[must_use]
    pub fn new(name: impl Into<String>, mut text: String) -> Self {
        let limit = u32::MAX as usize;
        if text.len() > limit {
            let end = (0..=limit).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            text.truncate(end);
        }
        let mut line_starts = vec![0];
        let ends = text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n');
        line_starts.extend(ends.map(|(at, _)| u32::try_from(at + 1).unwrap_or(u32::MAX)));
        Self { name: name.into(), text, line_starts }
    }

    /// What errors call it, such as `Dockerfile`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line and column of a byte offset; an offset behind the end counts as the end.
    #[must_use]
    pub fn position(&self, offset: u32) -> Position {
        let offset = offset.min(u32::try_from(self.text.len()).unwrap_or(u32::MAX));
        let line = self.line_starts.partition_point(|&start| start <= offset);
        let start = self.line_starts[line - 1] as usize;
        let before = self.text.get(start..offset as usize).unwrap_or_default();
        Position { line, column: before.chars().count() + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::{Source, Span};

    #[test]
    fn positions_count_from_one() {
        let source = Source::new("f", "ab\nćd\n".to_owned());
        for (offset, expect) in [(0, "1:1"), (1, "1:2"), (3, "2:1"), (5, "2:2"), (99, "3:1")] {
            assert_eq!(source.position(offset).to_string(), expect, "{offset}");
        }
    }

    #[test]
    fn spans_join() {
        assert_eq!(Span::new(4, 6).to(Span::new(1, 5)), Span::new(1, 6));
    }
}
