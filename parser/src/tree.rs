//! The syntax tree of a Dockerfile. Parsing never fails: what cannot be read becomes a diagnostic
//! and is left out. Printing a tree gives a Dockerfile that parses to the same tree.

use std::fmt;

use crate::diagnostic::Diagnostic;
use crate::directive::Directive;
use crate::grammar;
use crate::instruction::{self, Instruction, Word};
use crate::lines::{Comment, Heredoc, LogicalLine, continued, logical_lines};
use crate::source::{Source, Span};

/// A whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// `# key=value` at the top.
    pub directives: Vec<Directive>,
    /// The escape character in force.
    pub escape: char,
    /// The instructions, in order.
    pub statements: Vec<Statement>,
    /// Blank lines inside of continued instructions.
    pub blank_continuations: Vec<Span>,
}

/// One instruction and all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The instruction's name as written.
    pub keyword: Word,
    /// What it says.
    pub instruction: Instruction,
    /// The logical line, continuations joined.
    pub text: String,
    /// Comments directly above.
    pub comments: Vec<Comment>,
    /// Inline documents.
    pub heredocs: Vec<Heredoc>,
    /// From the keyword to the end of the last heredoc.
    pub span: Span,
}

/// Parses a file. The tree holds every instruction that could be read; the errors say what is
/// wrong with the rest, and whether the file as a whole makes no sense (no instruction, no FROM).
#[must_use]
pub fn parse(source: &Source) -> (Dockerfile, Vec<Diagnostic>) {
    let (lines, mut diagnostics) = logical_lines(source);
    let mut statements = Vec::with_capacity(lines.lines.len());
    for line in lines.lines {
        match statement(line, lines.escape) {
            Ok(statement) => statements.push(statement),
            Err(diagnostic) => diagnostics.push(diagnostic),
        }
    }
    let dockerfile = Dockerfile {
        directives: lines.directives,
        escape: lines.escape,
        statements,
        blank_continuations: lines.blank_continuations,
    };
    if diagnostics.is_empty() {
        diagnostics.extend(whole(source, &dockerfile));
    }
    (dockerfile, diagnostics)
}

/// Parses one trigger of an image's `OnBuild` list, a Dockerfile of one instruction.
#[must_use]
pub fn parse_trigger(source: &Source) -> (Vec<Statement>, Vec<Diagnostic>) {
    let (lines, mut diagnostics) = logical_lines(source);
    let mut statements = Vec::new();
    for line in lines.lines {
        match statement(line, '\\') {
            Ok(statement) => statements.push(statement),
            Err(diagnostic) => diagnostics.push(diagnostic),
        }
    }
    (statements, diagnostics)
}

fn statement(line: LogicalLine, escape: char) -> Result<Statement, Diagnostic> {
    let Some(tokens) = grammar::statement(&line.text, escape) else {
        return Err(Diagnostic::error(line.span, "this line cannot be read"));
    };
    let instruction = instruction::parse(&line, &tokens, escape)?;
    let keyword = Word { span: line.place(&tokens.keyword.range), text: tokens.keyword.text };
    Ok(Statement {
        keyword,
        instruction,
        text: line.text,
        comments: line.comments,
        heredocs: line.heredocs,
        span: line.span,
    })
}

/// What is wrong with the file as a whole.
fn whole(source: &Source, dockerfile: &Dockerfile) -> Option<Diagnostic> {
    let start = Span::new(0, 0);
    if source.text().is_empty() {
        let message = "the Dockerfile cannot be empty";
        return Some(Diagnostic::error(start, message).help("start with FROM and a base image"));
    }
    if dockerfile.statements.is_empty() {
        let message = "file with no instructions";
        return Some(Diagnostic::error(start, message).help("start with FROM and a base image"));
    }
    let first =
        dockerfile.statements.iter().find(|s| !matches!(s.instruction, Instruction::Arg(_)));
    match first {
        None => Some(
            Diagnostic::error(
                dockerfile.statements[0].span,
                "dockerfile contains no stages to build",
            )
            .help("add FROM and a base image"),
        ),
        Some(Statement { instruction: Instruction::From(_), .. }) => None,
        Some(other) => Some(
            Diagnostic::error(other.keyword.span, "no build stage in current context")
                .help("only ARG may stand in front of the first FROM"),
        ),
    }
}

impl fmt::Display for Dockerfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for directive in &self.directives {
            writeln!(f, "# {}={}", directive.name, directive.value)?;
        }
        for statement in &self.statements {
            statement.print(f, self.escape)?;
        }
        Ok(())
    }
}

impl Statement {
    fn print(&self, f: &mut fmt::Formatter<'_>, escape: char) -> fmt::Result {
        for comment in &self.comments {
            writeln!(f, "# {}", comment.text)?;
        }
        f.write_str(&self.text)?;
        // Only the last line of a file can end so: a continuation that nothing follows.
        if continued(&self.text, escape).is_some() {
            write!(f, "{escape}")?;
        }
        writeln!(f)?;
        for document in &self.heredocs {
            write!(f, "{}", document.content)?;
            writeln!(f, "{}", document.name)?;
        }
        Ok(())
    }
}

/// The oracle of the fuzz target and of the property test: printing and parsing again gives the
/// same instructions, whatever the text.
///
/// # Panics
/// Where that is not so: a bug of this crate.
pub fn check_round_trip(text: &str) {
    let source = Source::new("Dockerfile", text.to_owned());
    let (first, diagnostics) = parse(&source);
    if !diagnostics.is_empty() {
        return;
    }
    let printed = first.to_string();
    let (second, diagnostics) = parse(&Source::new("Dockerfile", printed.clone()));
    assert!(diagnostics.is_empty(), "{text:?} prints as {printed:?}, which has {diagnostics:?}");
    let shape = |dockerfile: &Dockerfile| -> Vec<(String, Vec<String>)> {
        let bodies = |s: &Statement| s.heredocs.iter().map(|d| d.content.clone()).collect();
        dockerfile.statements.iter().map(|s| (s.text.clone(), bodies(s))).collect()
    };
    assert_eq!(shape(&first), shape(&second), "{text:?} prints as {printed:?}");
    assert_eq!(first.escape, second.escape);
}

#[cfg(test)]
mod tests {
    use proptest::strategy::Strategy;

    use super::{check_round_trip, parse};
    use crate::source::Source;

    fn messages(text: &str) -> Vec<String> {
        let source = Source::new("Dockerfile", text.to_owned());
        let (_, diagnostics) = parse(&source);
        diagnostics
            .into_iter()
            .map(|d| format!("{} {}", source.position(d.span.expect("a place").start), d.message))
            .collect()
    }

    #[test]
    fn mistakes_have_a_place_and_a_reason() {
        for (text, expect) in [
            ("", "1:1 the Dockerfile cannot be empty"),
            ("# a\n", "1:1 file with no instructions"),
            ("ARG a\n", "1:1 dockerfile contains no stages to build"),
            ("RUN a\n", "1:1 no build stage in current context"),
            ("FROM a\nRNU b\n", "2:1 unknown instruction: RNU (did you mean RUN?)"),
            ("FROM a\nRUN --mont=type=cache x\n", "2:5 unknown flag: --mont (did you mean mount?)"),
            ("FROM a b\n", "1:6 FROM requires either one or three arguments"),
            (
                "FROM a as 1x\n",
                "1:11 invalid name for build stage: \"1x\", name can't start with a number or contain symbols",
            ),
            ("FROM a\nENV a\n", "2:5 ENV must have two arguments"),
            ("FROM a\nENV\n", "2:1 ENV requires at least one argument"),
            (
                "FROM a\nENV a=b c\n",
                "2:9 Syntax error - can't find = in \"c\". Must be of the form: name=value",
            ),
            (
                "FROM a\nCMD [\"a\", 1]\n",
                "2:5 when using JSON array syntax, arrays must be comprised of strings only",
            ),
            (
                "FROM a\nCOPY x\n",
                "2:6 COPY requires at least two arguments, but only one was provided. Destination could not be determined",
            ),
            (
                "FROM a\nCOPY --link=maybe x y\n",
                "2:6 expecting boolean value for flag --link, not: maybe",
            ),
            ("FROM a\nCOPY --from=a --from=b x y\n", "2:15 duplicate flag specified: --from"),
            (
                "FROM a\nSHELL bash -c\n",
                "2:7 SHELL requires the arguments to be in JSON form, not \"bash -c\"",
            ),
            ("FROM a\nUSER\n", "2:1 USER requires exactly one argument"),
            ("FROM a\nVOLUME [\"\"]\n", "2:8 VOLUME specified can not be an empty string"),
            ("FROM a\nONBUILD FROM b\n", "2:9 FROM isn't allowed as an ONBUILD trigger"),
            ("FROM a\nHEALTHCHECK FOO x\n", "2:13 Unknown type \"FOO\" in HEALTHCHECK (try CMD)"),
            (
                "FROM a\nHEALTHCHECK --interval=5 CMD x\n",
                "2:13 time: missing unit in duration \"5\"",
            ),
            ("FROM a\nRUN --network=nine x\n", "2:5 invalid network mode \"nine\""),
            ("FROM a\nRUN <<EOF\nx\n", "2:1 unterminated heredoc"),
            ("# escape=x\nFROM a\n", "1:1 invalid escape token 'x' does not match ` or \\"),
            ("FROM a\nCOPY a <<EOF\nx\nEOF\n", "2:8 COPY cannot accept a heredoc as a destination"),
        ] {
            assert_eq!(messages(text), [expect], "{text}");
        }
    }

    #[test]
    fn round_trips() {
        for text in [
            "FROM a\nRUN x \\\n # c\n y\n",
            "# escape=`\nFROM a\nRUN x `\n y\nCOPY a b`\n",
            "FROM a\nRUN <<A <<-B\n1\nA\n\t2\n\tB\nRUN c\n",
            "FROM a\nCOPY <<\"E\" /x\n$a\r\nE\n",
            "\u{feff}FROM a\n#c\nENV a='b c' d=\\\\\n",
            "FROM a\nRUN a \\",
            "FROM a\nRUN x\\\n\\\\\n",
            "FROM a\nENV a=b\\ \\\n",
            "FROM a\n \\\n ENV a=b",
        ] {
            check_round_trip(text);
        }
    }

    proptest::proptest! {
        /// Whatever the pieces: no panic, and what parses prints as itself.
        #[test]
        fn printing_is_the_inverse_of_parsing(pieces in proptest::collection::vec(piece(), 0..12)) {
            check_round_trip(&format!("FROM a\n{}", pieces.concat()));
        }

        #[test]
        fn any_text_can_be_parsed(text in ".{0,200}") {
            check_round_trip(&text);
        }
    }

    fn piece() -> impl proptest::strategy::Strategy<Value = String> {
        proptest::sample::select(vec![
            "RUN a",
            "\n",
            " \\\n",
            "\\",
            "\\\\\n",
            "# c\n",
            "<<E",
            "E\n",
            "\tE\n",
            "<<-'E'",
            "COPY ",
            "a b",
            "\"",
            "'",
            "$x",
            "${x:-y}",
            "ENV a=b",
            "[\"a\"]",
            "\r\n",
            "ONBUILD ",
            " ",
            "HEALTHCHECK CMD x",
            "--flag=1 ",
            "# escape=`\n",
            "`\n",
        ])
        .prop_map(str::to_owned)
    }

    #[test]
    fn large_files_parse_in_linear_time() {
        let mut text = String::from("FROM a\n");
        for i in 0..10_000 {
            text.push_str(&format!(
                "RUN --mount=type=cache,target=/c echo {i} && true \\\n  && x\n"
            ));
        }
        let (dockerfile, diagnostics) = parse(&Source::new("Dockerfile", text));
        assert!(diagnostics.is_empty());
        assert_eq!(dockerfile.statements.len(), 10_001);
    }
}
