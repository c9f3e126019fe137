//! What a target can be given, gathered while its stages are lowered.

use std::collections::BTreeSet;

use super::stage::Done;
use super::stages::{Place, Plan};
use crate::diagnostic::Diagnostic;
use crate::expand::Lookup as _;
use crate::instruction::Argument;
use crate::outline::{Outline, OutlineArgument, OutlineInput, description};
use crate::source::Span;
use crate::tree::Statement;

/// What the instructions of one stage read.
#[derive(Clone, Debug, Default)]
pub(super) struct Described {
    arguments: Vec<(OutlineArgument, bool)>,
    secrets: Vec<OutlineInput>,
    agents: Vec<OutlineInput>,
}

impl Described {
    pub(super) fn argument(
        &mut self,
        argument: &Argument,
        value: Option<String>,
        statement: &Statement,
    ) {
        let own = argument.value.is_some();
        self.arguments.push((self::argument(argument, value, BTreeSet::new(), statement), own));
    }

    pub(super) fn secret(&mut self, name: &str, required: bool, span: Span) {
        input(&mut self.secrets, name, required, span);
    }

    pub(super) fn ssh(&mut self, name: &str, required: bool, span: Span) {
        input(&mut self.agents, name, required, span);
    }
}

fn input(list: &mut Vec<OutlineInput>, name: &str, required: bool, span: Span) {
    match list.iter_mut().find(|known| known.name == name) {
        Some(known) => known.required |= required,
        None => list.push(OutlineInput { name: name.to_owned(), required, span }),
    }
}

/// One ARG as an outline shows it.
pub(super) fn argument(
    argument: &Argument,
    value: Option<String>,
    uses: BTreeSet<String>,
    statement: &Statement,
) -> OutlineArgument {
    OutlineArgument {
        name: argument.name.text.clone(),
        value: value.unwrap_or_default(),
        description: description(&statement.comments, &argument.name.text),
        span: statement.span,
        uses,
    }
}

/// The target's outline: its own stage first, then those it needs.
pub(super) fn describe(plan: &Plan<'_>, done: &[Option<Done>]) -> Result<Outline, Diagnostic> {
    let target = &plan.stages[plan.target];
    let name = target.from.name.as_ref().map(|name| name.text.clone()).unwrap_or_default();
    let mut outline = Outline {
        description: description(&target.statement.comments, &name),
        name,
        ..Outline::default()
    };
    let (mut open, mut seen) = (vec![plan.target], BTreeSet::new());
    let mut shown = Shown::default();
    while let Some(index) = open.pop() {
        if !seen.insert(index) {
            continue;
        }
        let stage = &plan.stages[index];
        let references = plan.references(stage)?;
        let places = references.iter().map(|(place, _)| place).rev().chain([&stage.base]);
        open.extend(places.filter_map(|place| match place {
            Place::Stage(needed) => Some(*needed),
            _ => None,
        }));
        let Some(result) = &done[index] else { continue };
        shown.add_stage(&mut outline, plan, stage.used.iter(), &result.described);
    }
    outline.arguments.sort_by_key(|argument| argument.span);
    outline.secrets.sort_by_key(|secret| secret.span);
    outline.agents.sort_by_key(|agent| agent.span);
    Ok(outline)
}

/// Names that the outline holds already: the first of each counts.
#[derive(Default)]
struct Shown(BTreeSet<String>);

impl Shown {
    fn add_stage<'n>(
        &mut self,
        outline: &mut Outline,
        plan: &Plan<'_>,
        used: impl Iterator<Item = &'n String>,
        described: &Described,
    ) {
        let mut wanted: Vec<String> = used.cloned().collect();
        for (argument, own) in &described.arguments {
            let global = plan.global_argument(&argument.name).is_some();
            let given = plan.options.build_args.contains_key(&argument.name);
            if !*own && !given && !global && plan.globals.get(&argument.name).is_some() {
                // TARGETARCH and the like are nobody's to give.
                continue;
            }
            if *own || !global {
                self.add(&mut outline.arguments, argument);
            } else {
                wanted.push(argument.name.clone());
            }
        }
        // Global arguments, and those that their defaults name.
        while let Some(name) = wanted.pop() {
            let Some(found) = plan.global_argument(&name) else { continue };
            if self.add(&mut outline.arguments, found) {
                wanted.extend(found.uses.iter().cloned());
            }
        }
        for secret in &described.secrets {
            input(&mut outline.secrets, &secret.name, secret.required, secret.span);
        }
        for agent in &described.agents {
            input(&mut outline.agents, &agent.name, agent.required, agent.span);
        }
    }

    /// Whether this one is shown.
    fn add(&mut self, list: &mut Vec<OutlineArgument>, argument: &OutlineArgument) -> bool {
        let first = self.0.insert(argument.name.clone());
        if first {
            list.push(argument.clone());
        }
        first
    }
}
