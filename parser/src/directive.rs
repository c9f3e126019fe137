//! Parser directives: `# syntax=`, `# escape=`, `# check=` in the first lines of a file.

use crate::diagnostic::Diagnostic;
use crate::source::Span;

/// One directive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    /// `syntax`, `escape` or `check`.
    pub name: String,
    /// What stands behind `=`.
    pub value: String,
    /// The line.
    pub span: Span,
}

/// Reads directives until the first line that is none.
#[derive(Debug)]
pub(crate) struct DirectiveReader {
    found: Vec<Directive>,
    escape: char,
    done: bool,
}

impl Default for DirectiveReader {
    fn default() -> Self {
        Self { found: Vec::new(), escape: '\\', done: false }
    }
}

impl DirectiveReader {
    /// The escape character so far.
    pub(crate) const fn escape(&self) -> char {
        self.escape
    }

    /// Whether a line (without leading blanks) is a directive; the first that is not ends them.
    pub(crate) fn read(&mut self, line: &str, start: usize) -> Result<bool, Diagnostic> {
        if self.done {
            return Ok(false);
        }
        let Some((name, value)) = key_value(line) else {
            self.done = true;
            return Ok(false);
        };
        let span = Span::new(start, start + line.len());
        if self.found.iter().any(|directive| directive.name == name) {
            let message = format!("only one {name} parser directive can be used");
            return Err(Diagnostic::error(span, message).help("remove one of the two lines"));
        }
        if name == "escape" {
            self.escape = match value {
                "\\" => '\\',
                "`" => '`',
                _ => {
                    let message = format!("invalid escape token '{value}' does not match ` or \\");
                    return Err(
                        Diagnostic::error(span, message).help("write # escape=` or # escape=\\")
                    );
                }
            };
        }
        self.found.push(Directive { name, value: value.to_owned(), span });
        Ok(true)
    }

    pub(crate) fn finish(&mut self) -> (Vec<Directive>, char) {
        (std::mem::take(&mut self.found), self.escape)
    }
}

/// `# key = value` with a known key, in lower case.
fn key_value(line: &str) -> Option<(String, &str)> {
    let (key, value) = line.strip_prefix('#')?.trim_start().split_once('=')?;
    let key = key.trim_end().to_ascii_lowercase();
    let value = value.trim();
    let known = matches!(key.as_str(), "syntax" | "escape" | "check");
    (known && !value.is_empty()).then_some((key, value))
}

#[cfg(test)]
mod tests {
    use super::{DirectiveReader, key_value};

    #[test]
    fn spellings() {
        for (line, expect) in [
            ("# syntax=docker/dockerfile:1", Some(("syntax", "docker/dockerfile:1"))),
            ("#  Escape = ` ", Some(("escape", "`"))),
            ("# other=1", None),
            ("# escape=", None),
            ("RUN a=b", None),
        ] {
            let got = key_value(line);
            assert_eq!(got.as_ref().map(|(k, v)| (k.as_str(), *v)), expect, "{line}");
        }
    }

    #[test]
    fn twice_is_an_error() {
        let mut reader = DirectiveReader::default();
        assert!(reader.read("# escape=`", 0).expect("valid"));
        let error = reader.read("# escape=`", 11).expect_err("twice");
        assert_eq!(error.message, "only one escape parser directive can be used");
    }
}
