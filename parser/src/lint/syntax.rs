//! Rules that need nothing but the tree.

use std::collections::BTreeSet;

use super::{Linter, rules};
use crate::instruction::{From, Instruction};
use crate::lines::Comment;
use crate::source::Span;
use crate::tree::{Dockerfile, Statement};

/// Looks at a whole file.
pub(crate) fn check(dockerfile: &Dockerfile, linter: &Linter) {
    for &span in &dockerfile.blank_continuations {
        linter.report(&rules::NO_EMPTY_CONTINUATION, span, &[], "Empty continuation line");
    }
    casing_of_instructions(dockerfile, linter);
    let mut names = BTreeSet::new();
    for statement in &dockerfile.statements {
        match &statement.instruction {
            Instruction::From(from) => stage(from, statement, &mut names, linter),
            Instruction::Maintainer(_) => linter.report(
                &rules::MAINTAINER_DEPRECATED,
                statement.span,
                &statement.comments,
                "Maintainer instruction is deprecated in favor of using label",
            ),
            Instruction::Arg(arguments) => {
                let names: Vec<&str> = arguments.iter().map(|a| a.name.text.as_str()).collect();
                description("ARG", &names, statement, linter);
            }
            _ => {}
        }
    }
}

fn stage(from: &From, statement: &Statement, names: &mut BTreeSet<String>, linter: &Linter) {
    let report = |rule, span: Span, message: String| {
        linter.report(rule, span, &statement.comments, message);
    };
    let (Some(as_word), Some(name)) = (&from.as_word, &from.name) else { return };
    if let Some(written) = &from.written_name
        && *written != name.text
    {
        let message = format!("Stage name '{written}' should be lowercase");
        report(&rules::STAGE_NAME_CASING, name.span, message);
    }
    let (keyword, word) = (&statement.keyword.text, &as_word.text);
    let lower = *keyword == keyword.to_lowercase();
    let upper = *keyword == keyword.to_uppercase();
    let matches = if lower { *word == word.to_lowercase() } else { *word == word.to_uppercase() };
    if (lower || upper) && !matches {
        let message = format!("'{word}' and '{keyword}' keywords' casing do not match");
        report(&rules::FROM_AS_CASING, as_word.span, message);
    }
    if matches!(name.text.as_str(), "scratch" | "context") {
        let message =
            format!("Stage name should not use the same name as reserved stage {:?}", name.text);
        report(&rules::RESERVED_STAGE_NAME, name.span, message);
    }
    if !names.insert(name.text.clone()) {
        let message = format!("Duplicate stage name {:?}, stage names should be unique", name.text);
        report(&rules::DUPLICATE_STAGE_NAME, name.span, message);
    }
    description("FROM", &[&name.text], statement, linter);
}

/// The comment directly above describes the stage or argument, if it begins with its name.
fn description(word: &str, names: &[&str], statement: &Statement, linter: &Linter) {
    let Some(Comment { text, .. }) = statement.comments.last() else { return };
    let [first, ..] = names else { return };
    if names.contains(&text.split(' ').next().unwrap_or_default()) {
        return;
    }
    let example = if names.len() > 1 { "<arg_key>" } else { first };
    let message =
        format!("Comment for {word} should follow the format: `# {example} <description>`");
    let rule = &rules::INVALID_DEFINITION_DESCRIPTION;
    linter.report(rule, statement.span, &statement.comments, message);
}

/// The majority of all instructions (those in one case) says which case is right.
fn casing_of_instructions(dockerfile: &Dockerfile, linter: &Linter) {
    let first_stage = dockerfile
        .statements
        .iter()
        .position(|statement| matches!(statement.instruction, Instruction::From(_)));
    let counted = &dockerfile.statements[first_stage.unwrap_or(dockerfile.statements.len())..];
    let count = |case: fn(&str) -> String| {
        counted.iter().filter(|s| case(&s.keyword.text) == s.keyword.text).count()
    };
    let is_lower = count(|word| word.to_lowercase()) > count(|word| word.to_uppercase());
    for statement in counted {
        let word = &statement.keyword.text;
        let (right, name) = if is_lower {
            (word.to_lowercase(), "lowercase")
        } else {
            (word.to_uppercase(), "uppercase")
        };
        if *word != right {
            let message =
                format!("Command '{word}' should match the case of the command majority ({name})");
            let rule = &rules::CONSISTENT_INSTRUCTION_CASING;
            linter.report(rule, statement.keyword.span, &statement.comments, message);
        }
    }
}

/// Whether a name of ARG or ENV sounds like a secret.
pub(crate) fn is_secret(name: &str) -> bool {
    const SECRET: &[&str] = &[
        "apikey",
        "auth",
        "credential",
        "credentials",
        "key",
        "password",
        "pword",
        "passwd",
        "secret",
        "token",
    ];
    const HARMLESS: &[&str] = &["public", "file", "version"];
    let lower = name.to_lowercase();
    let has = |words: &[&str]| lower.split('_').any(|part| words.contains(&part));
    has(SECRET) && !has(HARMLESS)
}

#[cfg(test)]
mod tests {
    use super::is_secret;

    #[test]
    fn secrets_by_name() {
        for name in ["API_KEY", "GITHUB_TOKEN", "secret_MESSAGE", "AUTH", "git_key", "_password"] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["MONKEY", "PUBLIC_KEY", "TOKEN_FILE", "SECRETS", "KEY_VERSION", "author"] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
