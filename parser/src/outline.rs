//! What a Dockerfile offers: its targets, and what a target can be given.

use std::collections::BTreeSet;

use crate::instruction::Instruction;
use crate::lines::Comment;
use crate::source::Span;
use crate::tree::Dockerfile;

/// A stage that can be built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetInfo {
    /// Its name; empty where it has none.
    pub name: String,
    /// It is built where no target is named.
    pub default: bool,
    /// What the comment above says behind the name.
    pub description: String,
    /// FROM, not expanded.
    pub base: String,
    /// `--platform`, not expanded.
    pub platform: String,
    /// The FROM.
    pub span: Span,
}

/// An argument that a target reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutlineArgument {
    /// Its name.
    pub name: String,
    /// Its value, given or by default; empty where it has none.
    pub value: String,
    /// What the comment above says behind the name.
    pub description: String,
    /// The ARG.
    pub span: Span,
    /// Arguments that its default names.
    pub(crate) uses: BTreeSet<String>,
}

/// A secret or an agent that a target reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutlineInput {
    /// Its id.
    pub name: String,
    /// The build fails without.
    pub required: bool,
    /// The RUN.
    pub span: Span,
}

/// What a target can be given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// The target's name; empty where it has none.
    pub name: String,
    /// What the comment above it says.
    pub description: String,
    /// Arguments, in the order of the file.
    pub arguments: Vec<OutlineArgument>,
    /// Secrets, in the order of the file.
    pub secrets: Vec<OutlineInput>,
    /// SSH agents, in the order of the file.
    pub agents: Vec<OutlineInput>,
}

/// All stages of a file.
#[must_use]
pub fn targets(dockerfile: &Dockerfile) -> Vec<TargetInfo> {
    let mut targets: Vec<TargetInfo> = dockerfile
        .statements
        .iter()
        .filter_map(|statement| match &statement.instruction {
            Instruction::From(from) => {
                let name = from.name.as_ref().map(|name| name.text.clone()).unwrap_or_default();
                Some(TargetInfo {
                    description: description(&statement.comments, &name),
                    name,
                    default: false,
                    base: from.image.text.clone(),
                    platform: from.platform.as_ref().map(|p| p.text.clone()).unwrap_or_default(),
                    span: statement.span,
                })
            }
            _ => None,
        })
        .collect();
    if let Some(last) = targets.last_mut() {
        last.default = true;
    }
    targets
}

/// What the comments above an instruction say of a name: the text behind it, where one begins with it.
pub(crate) fn description(comments: &[Comment], name: &str) -> String {
    if name.is_empty() {
        return String::new();
    }
    let found =
        comments.iter().find_map(|comment| comment.text.strip_prefix(name)?.strip_prefix(' '));
    found.map(|text| text.trim().to_owned()).unwrap_or_default()
}
