//! Arguments and environment: the global scope, the automatic arguments, the values of a stage.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::LowerOptions;
use crate::diagnostic::Diagnostic;
use crate::expand::{Expanded, Lookup, Quotes, expand};
use crate::instruction::{Argument, Word};
use crate::platform::Platform;

/// Variables in the order in which they were first set, found by name in constant time.
#[derive(Clone, Debug, Default)]
pub(super) struct Variables {
    list: Vec<(String, String)>,
    index: BTreeMap<String, usize>,
    /// The list as steps share it, until something changes.
    shared: Option<Arc<Vec<(String, String)>>>,
}

impl Variables {
    pub(super) fn set(&mut self, name: &str, value: &str) {
        match self.index.get(name) {
            Some(&at) if self.list[at].1 == value => return,
            Some(&at) => value.clone_into(&mut self.list[at].1),
            None => {
                self.index.insert(name.to_owned(), self.list.len());
                self.list.push((name.to_owned(), value.to_owned()));
            }
        }
        self.shared = None;
    }

    /// The whole list; one allocation serves all steps until the next change.
    pub(super) fn share(&mut self, budget: &Budget) -> Arc<Vec<(String, String)>> {
        let list = &self.list;
        let copy = || {
            let size = |(name, value): &(String, String)| name.len() + value.len() + PAIR_BYTES;
            budget.add(list.iter().map(size).sum());
            Arc::new(list.clone())
        };
        Arc::clone(self.shared.get_or_insert_with(copy))
    }

    pub(super) fn bytes(&self) -> usize {
        self.list.iter().map(|(name, value)| 2 * name.len() + value.len() + 2 * PAIR_BYTES).sum()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|(name, _)| name.as_str())
    }
}

impl Lookup for Variables {
    fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|&at| self.list[at].1.as_str())
    }
}

/// How many bytes the values of one Dockerfile may take together: a megabyte of instructions that all
/// name a large variable must not eat the memory.
const VALUES_BYTES_MAX: usize = 256 << 20;

/// Bytes that variables added to the text of the Dockerfile so far.
#[derive(Debug, Default)]
pub(super) struct Budget(Cell<usize>);

impl Budget {
    /// Counts bytes; the next value is refused if they are too many.
    pub(super) fn add(&self, bytes: usize) {
        self.0.set(self.0.get().saturating_add(bytes));
    }

    /// Takes what expanding `text` gave.
    pub(super) fn take(&self, expanded: &str, text: &str) -> Result<(), String> {
        self.add(expanded.len().saturating_sub(text.len()));
        self.check(0)
    }

    /// Whether there is room for these bytes, which are not counted.
    pub(super) fn check(&self, more: usize) -> Result<(), String> {
        if self.0.get().saturating_add(more) > VALUES_BYTES_MAX {
            let most = VALUES_BYTES_MAX >> 20;
            return Err(format!("the values of this Dockerfile grow beyond {most} MiB together"));
        }
        Ok(())
    }
}

/// What a pair of strings takes beside their bytes.
pub(super) const PAIR_BYTES: usize = size_of::<(String, String)>();

/// Expands a word of the Dockerfile.
pub(super) fn expand_word(
    word: &Word,
    escape: char,
    variables: &dyn Lookup,
    budget: &Budget,
) -> Result<Expanded, Diagnostic> {
    let expanded = expand(&word.text, escape, Quotes::Process, variables).map_err(|error| {
        Diagnostic::error(word.span, error.to_string()).help_if(hint(&error.reason))
    })?;
    let taken = budget.take(&expanded.text, &word.text);
    taken.map_err(|reason| Diagnostic::error(word.span, reason))?;
    Ok(expanded)
}

fn hint(reason: &str) -> Option<String> {
    // `${NAME:?message}` gives `NAME: message`.
    let word = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if reason.split_once(": ").is_some_and(|(name, _)| word(name)) {
        return Some("give a value with --build-arg, or a default with ARG NAME=VALUE".to_owned());
    }
    if reason.contains("modifier") || reason.contains("bad substitution") {
        return Some("operators: ${v:-w} ${v:+w} ${v:?m} ${v#p} ${v%p} ${v/p/r}".to_owned());
    }
    reason.contains("quote").then(|| "close the quote, or write it as \\\" or \\'".to_owned())
}

/// The automatic arguments, which `--build-arg` may override.
pub(super) fn automatic(options: &LowerOptions, target: &Platform, stage: &str) -> Variables {
    let build = &options.build_platform;
    let stage = if stage.is_empty() { "default" } else { stage };
    let values = [
        ("BUILDPLATFORM", build.text()),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", String::new()),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", build.variant.clone()),
        ("TARGETPLATFORM", target.text()),
        ("TARGETOS", target.os.clone()),
        ("TARGETOSVERSION", String::new()),
        ("TARGETARCH", target.architecture.clone()),
        ("TARGETVARIANT", target.variant.clone()),
        ("TARGETSTAGE", stage.to_owned()),
    ];
    let mut variables = Variables::default();
    for (name, value) in values {
        variables.set(name, options.build_args.get(name).unwrap_or(&value));
    }
    variables
}

/// ARGs in front of the first FROM; gives for each which arguments its default names.
pub(super) fn declare_global(
    variables: &mut Variables,
    arguments: &[Argument],
    escape: char,
    build_args: &BTreeMap<String, String>,
    budget: &Budget,
) -> Result<Vec<BTreeSet<String>>, Diagnostic> {
    let mut uses = Vec::with_capacity(arguments.len());
    for argument in arguments {
        let name = &argument.name.text;
        let mut used = BTreeSet::new();
        let value = match (build_args.get(name), &argument.value) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(default)) => {
                let expanded = expand_word(default, escape, variables, budget)?;
                used = expanded.used;
                Some(expanded.text)
            }
            (None, None) => None,
        };
        if let Some(value) = value {
            variables.set(name, &value);
        }
        uses.push(used);
    }
    Ok(uses)
}

/// Proxy variables of the build arguments, in both spellings, for the environment of steps.
pub(super) fn proxies(build_args: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"] {
        let mut given = build_args.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        if let Some((_, value)) = given.next_back() {
            found.push((name.to_owned(), value.clone()));
            found.push((name.to_lowercase(), value.clone()));
        }
    }
    found
}
