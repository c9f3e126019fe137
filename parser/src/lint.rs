//! Lints: BuildKit's rules under BuildKit's names (`frontend/dockerfile/linter`).
//!
//! [`rules`] is the table, [`checks`] says which rules are on, [`syntax`] holds the rules that need the
//! tree alone; those that need the state of a stage are reported where `lower` keeps that state. All
//! go through one [`Linter`], which drops what is skipped.

pub mod checks;
pub mod rules;
pub(crate) mod syntax;

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::diagnostic::Diagnostic;
use crate::lines::Comment;
use crate::source::Span;
use checks::Checks;

/// Collects what rules find.
#[derive(Debug, Default)]
pub(crate) struct Linter {
    /// What is on; `None` where nobody listens.
    checks: Option<Checks>,
    found: RefCell<Vec<Diagnostic>>,
    /// What was reported: words that are expanded twice are told once.
    told: RefCell<BTreeSet<(&'static str, Span, String)>>,
}

impl Linter {
    pub(crate) fn new(checks: Checks) -> Self {
        Self { checks: Some(checks), ..Self::default() }
    }

    /// Reports one finding; `comments` are those above the instruction, which may skip the rule.
    pub(crate) fn report(
        &self,
        rule: &'static rules::Rule,
        span: Span,
        comments: &[Comment],
        message: impl Into<String>,
    ) {
        let Some(checks) = &self.checks else { return };
        let own = comments.iter().find_map(|comment| checks.with_comment(&comment.text));
        if !own.as_ref().unwrap_or(checks).is_on(rule) {
            return;
        }
        let message = message.into();
        if self.told.borrow_mut().insert((rule.name, span, message.clone())) {
            let found = Diagnostic::warning(rule.name, span, message).help_if(rule.url());
            self.found.borrow_mut().push(found);
        }
    }

    /// What was found, in the order of the file.
    pub(crate) fn finish(self) -> Vec<Diagnostic> {
        let mut found = self.found.into_inner();
        found.sort_by_key(|diagnostic| diagnostic.span);
        found
    }

    /// What was found until now.
    pub(crate) fn found(&self) -> Vec<Diagnostic> {
        self.found.borrow().clone()
    }

    /// Findings are errors (`# check=error=true`).
    pub(crate) fn is_strict(&self) -> bool {
        self.checks.as_ref().is_some_and(|checks| checks.error)
    }
}

/// The error that findings are where they are errors.
pub(crate) fn violation(found: &[Diagnostic]) -> Diagnostic {
    let mut names: Vec<&str> = found.iter().map(|diagnostic| diagnostic.code).collect();
    names.sort_unstable();
    names.dedup();
    let message = format!("lint violation found for rules: {}", names.join(", "));
    let place = found.first().and_then(|diagnostic| diagnostic.span).unwrap_or_default();
    Diagnostic::error(place, message)
        .help("mend the warnings, or skip a rule with # check=skip=RULE at the top of the file")
}
