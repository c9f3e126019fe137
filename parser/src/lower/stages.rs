//! Stages: their names, bases and triggers; which of them a target reaches; what images that takes.

use std::collections::{BTreeMap, BTreeSet};

use super::args::{self, Budget, Variables, expand_word};
use super::outline;
use super::stage::{self, Done, StageResult};
use super::{BaseImage, ImageRequest, Known, LowerOptions, NamedContext, NoCache, Target};
use crate::config::ImageConfig;
use crate::diagnostic::Diagnostic;
use crate::expand::{Expanded, Lookup as _};
use crate::graph::{Graph, ImageKey, ImageName};
use crate::instruction::{From, Instruction, Word};
use crate::lines::heredoc_word;
use crate::lint::{Linter, rules};
use crate::mount;
use crate::outline::{Outline, OutlineArgument};
use crate::platform::Platform;
use crate::source::{Source, Span};
use crate::suggest;
use crate::tree::{Dockerfile, Statement, parse_trigger};

/// What a name in FROM, `--from` or `from=` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A stage of this file, by number.
    Stage(usize),
    /// A context that is files.
    Folder(String),
    /// Nothing.
    Empty,
    /// An image.
    Image(ImageKey),
}

/// A stage before it is lowered.
#[derive(Debug)]
pub(super) struct StagePlan<'a> {
    pub(super) from: &'a From,
    pub(super) span: Span,
    /// The name, or its number where it has none.
    pub(super) label: String,
    pub(super) base: Place,
    /// `FROM` with everything expanded, for the label of the base's node.
    pub(super) base_name: String,
    /// `--platform`, expanded.
    pub(super) platform: Option<Platform>,
    pub(super) no_cache: bool,
    /// A named context stands for the whole stage.
    pub(super) replaced: bool,
    pub(super) statements: Vec<&'a Statement>,
    /// What the base's ONBUILD adds in front.
    pub(super) triggers: Vec<Statement>,
    pub(super) reachable: bool,
    /// The FROM itself.
    pub(super) statement: &'a Statement,
    /// Arguments that the FROM names.
    pub(super) used: BTreeSet<String>,
}

/// Everything that is known before instructions are lowered.
pub(super) struct Plan<'a> {
    pub(super) dockerfile: &'a Dockerfile,
    pub(super) options: &'a LowerOptions,
    pub(super) known: &'a Known,
    pub(super) platform: Platform,
    pub(super) globals: Variables,
    pub(super) stages: Vec<StagePlan<'a>>,
    pub(super) target: usize,
    pub(super) epoch: Option<i64>,
    pub(super) requests: Vec<ImageRequest>,
    pub(super) linter: &'a Linter,
    /// ARGs in front of the first FROM, for the outline.
    global_arguments: BTreeMap<String, OutlineArgument>,
    names: BTreeMap<String, usize>,
    /// The global scope as it is where nothing is given.
    defaults: Variables,
    pub(super) budget: Budget,
}

impl<'a> Plan<'a> {
    pub(super) fn new(
        dockerfile: &'a Dockerfile,
        options: &'a LowerOptions,
        known: &'a Known,
        platform: Platform,
        linter: &'a Linter,
    ) -> Result<Self, Diagnostic> {
        let target_name = options.target.clone().unwrap_or_else(|| last_name(dockerfile));
        let globals = args::automatic(options, &platform, &target_name);
        let mut defaults = globals.clone();
        let budget = Budget::default();
        declare_defaults(dockerfile, &mut defaults, &budget);
        let mut plan = Plan {
            dockerfile,
            options,
            known,
            platform,
            globals,
            stages: Vec::new(),
            target: 0,
            epoch: None,
            requests: Vec::new(),
            linter,
            global_arguments: BTreeMap::new(),
            names: BTreeMap::new(),
            defaults,
            budget,
        };
        plan.collect()?;
        plan.target = plan.find_target()?;
        plan.epoch = plan.find_epoch()?;
        plan.check_references()?;
        plan.mark_reachable()?;
        Ok(plan)
    }

    fn escape(&self) -> char {
        self.dockerfile.escape
    }

    fn collect(&mut self) -> Result<(), Diagnostic> {
        for statement in &self.dockerfile.statements {
            match &statement.instruction {
                Instruction::From(from) => self.add_stage(from, statement)?,
                Instruction::Arg(arguments) if self.stages.is_empty() => {
                    let escape = self.escape();
                    let build_args = &self.options.build_args;
                    let (globals, budget) = (&mut self.globals, &self.budget);
                    let used =
                        args::declare_global(globals, arguments, escape, build_args, budget)?;
                    for (argument, uses) in arguments.iter().zip(used) {
                        let value = self.globals.get(&argument.name.text).map(str::to_owned);
                        let described = outline::argument(argument, value, uses, statement);
                        self.global_arguments.insert(described.name.clone(), described);
                    }
                }
                _ => {
                    if let Some(stage) = self.stages.last_mut() {
                        stage.statements.push(statement);
                    }
                }
            }
        }
        Ok(())
    }

    fn add_stage(&mut self, from: &'a From, statement: &'a Statement) -> Result<(), Diagnostic> {
        let index = self.stages.len();
        let expanded = expand_word(&from.image, self.escape(), &self.globals, &self.budget)?;
        self.check_arguments(&expanded, &from.image, statement);
        self.check_default(from, statement);
        let mut used = expanded.used;
        let base_name = expanded.text;
        if base_name.is_empty() {
            let message = format!("base name ({}) should not be blank", from.image.text);
            let near = expanded.missing.iter().find_map(|name| {
                suggest::did_you_mean(name, self.globals.names()).map(|s| format!("{name}: {s}"))
            });
            let default = "declare the argument with ARG in front of the first FROM, or give it with --build-arg";
            return Err(Diagnostic::error(from.image.span, message)
                .help_if(near)
                .help_if(Some(default.to_owned())));
        }
        let platform = match &from.platform {
            Some(word) => Some(self.stage_platform(word, from, statement, &mut used)?),
            None => None,
        };
        let name = from.name.as_ref().map(|word| word.text.clone()).unwrap_or_default();
        let context =
            if name.is_empty() { None } else { self.find_context(&name, platform.as_ref()) };
        let replaced = context.is_some();
        let base = if let Some(context) = context {
            self.context_place(context, platform.as_ref(), from.image.span)?
        } else if let Some(&stage) = self.names.get(base_name.as_str()) {
            Place::Stage(stage)
        } else {
            self.image_place(&base_name, platform.as_ref(), from.image.span)?
        };
        let no_cache = match &self.options.no_cache {
            NoCache::Nothing => false,
            NoCache::Everything => true,
            NoCache::Stages(stages) => !name.is_empty() && stages.contains(&name),
        };
        let label = if name.is_empty() { format!("stage-{index}") } else { name.clone() };
        if !name.is_empty() {
            self.names.insert(name.clone(), index);
        }
        self.stages.push(StagePlan {
            from,
            span: statement.span,
            label,
            base,
            base_name,
            platform,
            no_cache,
            replaced,
            statements: Vec::new(),
            triggers: Vec::new(),
            reachable: false,
            statement,
            used,
        });
        Ok(())
    }

    fn stage_platform(
        &self,
        word: &Word,
        from: &From,
        statement: &Statement,
        used: &mut BTreeSet<String>,
    ) -> Result<Platform, Diagnostic> {
        let expanded = expand_word(word, self.escape(), &self.globals, &self.budget)?;
        self.check_arguments(&expanded, word, statement);
        self.check_platform(&expanded, word, from, statement);
        used.extend(expanded.used);
        let text = expanded.text;
        if text.is_empty() {
            let message = format!("empty platform value from expression {}", word.text);
            return Err(Diagnostic::error(word.span, message)
                .help("BUILDPLATFORM and TARGETPLATFORM are always set"));
        }
        text.parse().map_err(|error| {
            let message = format!("failed to parse platform {}: {error}", word.text);
            Diagnostic::error(word.span, message).help("for example linux/amd64 or linux/arm64")
        })
    }

    /// The named context of a name: one for the platform alone (`name::linux/arm64`) comes first.
    fn find_context(&self, name: &str, platform: Option<&Platform>) -> Option<&'a str> {
        let contexts = &self.options.named_contexts;
        if contexts.is_empty() {
            return None;
        }
        let special = format!("{name}::{}", platform.unwrap_or(&self.platform));
        let found = contexts.get_key_value(&special).or_else(|| contexts.get_key_value(name));
        found.map(|(key, _)| key.as_str())
    }

    fn report(&self, rule: &'static rules::Rule, span: Span, statement: &Statement, text: String) {
        self.linter.report(rule, span, &statement.comments, text);
    }

    /// FROM may name only arguments that are declared in front of it.
    fn check_arguments(&self, expanded: &Expanded, word: &Word, statement: &Statement) {
        let declared = || self.global_arguments.keys().map(String::as_str);
        for name in &expanded.missing {
            if self.global_arguments.contains_key(name) {
                continue;
            }
            let mut message = format!("FROM argument '{name}' is not declared");
            if let Some(near) = suggest::nearest(name, declared().chain(self.globals.names())) {
                message.push_str(&format!(" (did you mean {near}?)"));
            }
            self.report(&rules::UNDEFINED_ARG_IN_FROM, word.span, statement, message);
        }
    }

    /// With all arguments at their defaults the base's name has to make sense, too.
    fn check_default(&self, from: &From, statement: &Statement) {
        let (image, defaults) = (&from.image, &self.defaults);
        let Ok(expanded) = expand_word(image, self.escape(), defaults, &self.budget) else {
            return;
        };
        let name = expanded.text;
        if name.is_empty() || check_reference(&name, from.image.span).is_err() {
            let message = format!(
                "Default value for ARG {} results in empty or invalid base image name",
                from.image.text
            );
            self.report(&rules::INVALID_DEFAULT_ARG_IN_FROM, from.image.span, statement, message);
        }
    }

    fn check_platform(&self, expanded: &Expanded, word: &Word, from: &From, statement: &Statement) {
        let only_target = expanded.used.len() == 1 && expanded.used.contains("TARGETPLATFORM");
        let target = self.globals.get("TARGETPLATFORM").unwrap_or_default();
        if only_target && expanded.missing.is_empty() && expanded.text == target {
            let message = format!(
                "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
                word.text
            );
            self.report(&rules::REDUNDANT_TARGET_PLATFORM, word.span, statement, message);
        }
        let constant = expanded.used.is_empty() && expanded.missing.is_empty();
        let name = from.name.as_ref().map_or("", |name| name.text.as_str());
        if constant
            && let Ok(platform) = expanded.text.parse::<Platform>()
            && !name.contains(&platform.os)
            && !name.contains(&platform.architecture)
        {
            let message =
                format!("FROM --platform flag should not use constant value {:?}", expanded.text);
            let rule = &rules::FROM_PLATFORM_FLAG_CONST_DISALLOWED;
            self.report(rule, word.span, statement, message);
        }
    }

    /// What a named context gives.
    fn context_place(
        &self,
        name: &str,
        platform: Option<&Platform>,
        span: Span,
    ) -> Result<Place, Diagnostic> {
        match self.context(name) {
            NamedContext::Local | NamedContext::Git(_) | NamedContext::File { .. } => {
                Ok(Place::Folder(name.to_owned()))
            }
            NamedContext::Scratch => Ok(Place::Empty),
            NamedContext::Stage(stage) => {
                self.names.get(stage).copied().map(Place::Stage).ok_or_else(|| {
                    let message =
                        format!("context {name:?} is stage {stage:?}, which is not defined before");
                    Diagnostic::error(span, message).help("move that stage up in the file")
                })
            }
            NamedContext::Image => Ok(Place::Image(ImageKey {
                name: ImageName::Context(name.to_owned()),
                platform: platform.unwrap_or(&self.platform).clone(),
            })),
        }
    }

    /// What a name gives that is no stage: a named context, else an image.
    fn image_place(
        &self,
        name: &str,
        platform: Option<&Platform>,
        span: Span,
    ) -> Result<Place, Diagnostic> {
        if name == "scratch" {
            return Ok(Place::Empty);
        }
        check_reference(name, span)?;
        let familiar = familiar(name);
        if let Some(context) = self.find_context(&familiar, platform) {
            return self.context_place(context, platform, span);
        }
        let platform = platform.unwrap_or(&self.platform).clone();
        Ok(Place::Image(ImageKey { name: ImageName::Reference(name.to_owned()), platform }))
    }

    /// What `--from` or `from=` means: a number (COPY alone), a stage in any case, a context, an image.
    pub(super) fn place_of(&self, word: &Word, numbers: bool) -> Result<Place, Diagnostic> {
        let text = &word.text;
        if numbers && let Ok(number) = text.parse::<usize>() {
            if number < self.stages.len() {
                return Ok(Place::Stage(number));
            }
            let message = format!("invalid stage index {number}");
            let help =
                format!("this file has the stages 0 to {}", self.stages.len().saturating_sub(1));
            return Err(Diagnostic::error(word.span, message).help(help));
        }
        match self.names.get(&text.to_lowercase()) {
            Some(&stage) => Ok(Place::Stage(stage)),
            None => self.image_place(text, None, word.span),
        }
    }

    fn find_target(&self) -> Result<usize, Diagnostic> {
        let last = self.stages.len().saturating_sub(1);
        let Some(target) = &self.options.target else { return Ok(last) };
        if let Some(&stage) = self.names.get(&target.to_lowercase()) {
            return Ok(stage);
        }
        if let Ok(number) = target.parse::<usize>()
            && number < self.stages.len()
        {
            return Ok(number);
        }
        let message = format!("target stage {target:?} could not be found");
        let names = || self.names.keys().map(String::as_str);
        let near = suggest::did_you_mean(target, names());
        let all = format!("stages of this file: {}", names().collect::<Vec<_>>().join(", "));
        let span = self.stages.last().map_or(Span::default(), |stage| stage.span);
        Err(Diagnostic::error(span, message).help_if(near).help_if(Some(all)))
    }

    fn find_epoch(&mut self) -> Result<Option<i64>, Diagnostic> {
        let given = self.options.build_args.get("SOURCE_DATE_EPOCH").map(String::as_str);
        let Some(text) = given.or_else(|| self.globals.get("SOURCE_DATE_EPOCH")) else {
            return Ok(None);
        };
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| {
            let span = self.dockerfile.statements.first().map_or(Span::default(), |s| s.span);
            Diagnostic::error(span, format!("invalid SOURCE_DATE_EPOCH: {text}"))
                .help("seconds since 1970 as a whole number")
        })
    }

    /// All references of a stage's instructions, the triggers' first.
    pub(super) fn references(
        &self,
        stage: &StagePlan<'_>,
    ) -> Result<Vec<(Place, Word)>, Diagnostic> {
        let mut found = Vec::new();
        if stage.replaced {
            return Ok(found);
        }
        for statement in stage.triggers.iter().chain(stage.statements.iter().copied()) {
            for (word, numbers) in reference_words(statement)? {
                found.push((self.place_of(&word, numbers)?, word));
            }
        }
        Ok(found)
    }

    /// References of all stages make sense, reached or not; no stage needs itself.
    fn check_references(&self) -> Result<(), Diagnostic> {
        let mut uses: Vec<Vec<usize>> = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            let references = self.references(stage)?;
            let stages = references.iter().filter_map(|(place, _)| match place {
                Place::Stage(index) => Some(*index),
                _ => None,
            });
            let base = match stage.base {
                Place::Stage(index) => Some(index),
                _ => None,
            };
            uses.push(stages.chain(base).collect());
        }
        match circle(&uses) {
            None => Ok(()),
            Some(index) => {
                let stage = &self.stages[index];
                let message = format!("circular dependency detected on stage: {}", stage.label);
                Err(Diagnostic::error(stage.span, message)
                    .help("a stage may use only stages that do not use it"))
            }
        }
    }

    /// Walks from the target; loads the triggers of bases that are known, asks for the others.
    fn mark_reachable(&mut self) -> Result<(), Diagnostic> {
        let mut open = vec![self.target];
        if self.options.all_stages {
            open.extend(0..self.stages.len());
        }
        while let Some(index) = open.pop() {
            if self.stages[index].reachable {
                continue;
            }
            self.stages[index].reachable = true;
            let base = self.stages[index].base.clone();
            let span = self.stages[index].from.image.span;
            self.need(&base, span, &mut open);
            self.stages[index].triggers = self.triggers(index)?;
            for (place, word) in self.references(&self.stages[index])? {
                self.need(&place, word.span, &mut open);
            }
        }
        Ok(())
    }

    fn need(&mut self, place: &Place, span: Span, open: &mut Vec<usize>) {
        match place {
            Place::Stage(index) => open.push(*index),
            Place::Image(key) if !self.known.contains_key(key) => {
                if !self.requests.iter().any(|request| request.key == *key) {
                    self.requests.push(ImageRequest { key: key.clone(), span });
                }
            }
            Place::Image(_) | Place::Folder(_) | Place::Empty => {}
        }
    }

    /// What ONBUILD of the base adds to a stage; empty while the base is not known.
    fn triggers(&self, index: usize) -> Result<Vec<Statement>, Diagnostic> {
        let stage = &self.stages[index];
        if stage.replaced {
            return Ok(Vec::new());
        }
        let texts: Vec<String> = match &stage.base {
            Place::Stage(base) if !self.stages[*base].replaced => self.stages[*base]
                .statements
                .iter()
                .filter_map(|statement| match &statement.instruction {
                    Instruction::Onbuild(onbuild) => Some(onbuild.trigger.clone()),
                    _ => None,
                })
                .collect(),
            Place::Image(key) => {
                self.known.get(key).map(|image| image.config.on_build.clone()).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        let mut triggers = Vec::new();
        for text in texts {
            triggers.push(trigger_statement(&text, stage.span)?);
        }
        Ok(triggers)
    }

    /// The image behind a key; lowering starts only when all are known.
    pub(super) fn image(&self, key: &ImageKey) -> Result<&'a BaseImage, Diagnostic> {
        self.known.get(key).ok_or_else(|| {
            Diagnostic::error(Span::default(), format!("image {:?} was not looked up", key.name))
        })
    }

    /// An ARG in front of the first FROM.
    pub(super) fn global_argument(&self, name: &str) -> Option<&OutlineArgument> {
        self.global_arguments.get(name)
    }

    /// The main context (`context`), or a named one.
    pub(super) fn context(&self, name: &str) -> &'a NamedContext {
        if name == "context" { &self.options.context } else { &self.options.named_contexts[name] }
    }

    pub(super) fn global_values(&self) -> &Variables {
        &self.globals
    }
}

/// One trigger as an instruction; its place is the FROM that brought it in.
fn trigger_statement(text: &str, from: Span) -> Result<Statement, Diagnostic> {
    let source = Source::new("ONBUILD", format!("{text}\n"));
    let (mut statements, diagnostics) = parse_trigger(&source);
    if let Some(diagnostic) = diagnostics.into_iter().next() {
        let message = format!("{} (in the trigger `ONBUILD {text}`)", diagnostic.message);
        return Err(Diagnostic { span: Some(from), message, ..diagnostic });
    }
    match (statements.pop(), statements.is_empty()) {
        // An image's document is no Dockerfile, where ONBUILD itself refuses these.
        (Some(statement), true)
            if matches!(
                statement.instruction,
                Instruction::From(_) | Instruction::Onbuild(_) | Instruction::Maintainer(_)
            ) =>
        {
            let message = format!("the base image may not ask for `ONBUILD {text}`");
            Err(Diagnostic::error(from, message).help("take another base image"))
        }
        (Some(mut statement), true) => {
            place_at(&mut statement, from);
            Ok(statement)
        }
        _ => Err(Diagnostic::error(from, "onbuild trigger should be a single expression")),
    }
}

/// Every word of a trigger is told at the FROM: its own text is in no file that the user has.
fn place_at(statement: &mut Statement, span: Span) {
    statement.span = span;
    statement.keyword.span = span;
    let mut set = |word: &mut Word| word.span = span;
    match &mut statement.instruction {
        Instruction::Copy(copy) => {
            let words = [&mut copy.from, &mut copy.chown, &mut copy.chmod];
            words.into_iter().flatten().for_each(&mut set);
            set(&mut copy.dest);
        }
        Instruction::Run(run) => run.mounts.iter_mut().for_each(set),
        Instruction::Workdir(word)
        | Instruction::User(word)
        | Instruction::Stopsignal(word)
        | Instruction::Maintainer(word) => set(word),
        _ => {}
    }
}

/// The words of an instruction that name stages, contexts or images; whether numbers count.
fn reference_words(statement: &Statement) -> Result<Vec<(Word, bool)>, Diagnostic> {
    match &statement.instruction {
        Instruction::Copy(copy) => {
            let Some(from) = &copy.from else { return Ok(Vec::new()) };
            if from.text.contains('$') {
                let message = "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround";
                return Err(Diagnostic::error(from.span, message)
                    .help("add FROM ${NAME} AS other in front and write --from=other"));
            }
            if from.text.is_empty() || heredoc_word(&from.text).is_some() {
                return Err(Diagnostic::error(
                    from.span,
                    format!("invalid --from {:?}", from.text),
                ));
            }
            Ok(vec![(from.clone(), true)])
        }
        Instruction::Run(run) => {
            let mut words = Vec::new();
            for flag in &run.mounts {
                mount::check(flag)?;
                let from = mount::from(flag);
                words.extend(from.map(|text| (Word { text, span: flag.span }, false)));
            }
            Ok(words)
        }
        _ => Ok(Vec::new()),
    }
}

/// A stage that is on a circle of uses; found without recursion.
fn circle(uses: &[Vec<usize>]) -> Option<usize> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; uses.len()];
    for start in 0..uses.len() {
        let mut path = vec![(start, 0)];
        if marks[start] != Mark::New {
            continue;
        }
        marks[start] = Mark::Open;
        while let Some((stage, next)) = path.pop() {
            let Some(&used) = uses[stage].get(next) else {
                marks[stage] = Mark::Done;
                continue;
            };
            path.push((stage, next + 1));
            match marks[used] {
                Mark::Open => return Some(used),
                Mark::New => {
                    marks[used] = Mark::Open;
                    path.push((used, 0));
                }
                Mark::Done => {}
            }
        }
    }
    None
}

/// The ARGs in front of the first FROM with nothing given; what makes no sense is told elsewhere.
fn declare_defaults(dockerfile: &Dockerfile, variables: &mut Variables, budget: &Budget) {
    for statement in &dockerfile.statements {
        match &statement.instruction {
            Instruction::Arg(arguments) => {
                let nothing = BTreeMap::new();
                let escape = dockerfile.escape;
                if args::declare_global(variables, arguments, escape, &nothing, budget).is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

fn last_name(dockerfile: &Dockerfile) -> String {
    let last =
        dockerfile.statements.iter().rev().find_map(|statement| match &statement.instruction {
            Instruction::From(from) => Some(from.name.as_ref().map(|name| name.text.clone())),
            _ => None,
        });
    last.flatten().unwrap_or_default()
}

/// The name under which a named context is looked up: `docker.io/library/` and `:latest` fall away.
fn familiar(name: &str) -> String {
    let lower = name.to_lowercase();
    let short = lower.strip_prefix("docker.io/").unwrap_or(&lower);
    let short = short.strip_prefix("library/").unwrap_or(short);
    short.strip_suffix(":latest").unwrap_or(short).to_owned()
}

/// The grammar of references, as far as an error should point into the Dockerfile.
fn check_reference(name: &str, span: Span) -> Result<(), Diagnostic> {
    let path = name.split(['@']).next().unwrap_or_default();
    let allowed =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '[' | ']');
    let last = path.rsplit_once('/').map_or(path, |(_, last)| last);
    let (repository, tag) = last.split_once(':').map_or((last, None), |(r, tag)| (r, Some(tag)));
    let upper = repository.chars().any(|c| c.is_ascii_uppercase());
    if !upper
        && path.chars().all(allowed)
        && !repository.is_empty()
        && tag.is_none_or(|tag| !tag.is_empty() && !tag.starts_with(['.', '-']))
        && !path.starts_with(['/', '-', '.'])
    {
        return Ok(());
    }
    let why = if upper { "repository name must be lowercase" } else { "invalid reference format" };
    let why = if upper { format!("invalid reference format: {why}") } else { why.to_owned() };
    let message = format!("failed to parse stage name {name:?}: {why}");
    Err(Diagnostic::error(span, message).help("an image is named like registry.example/name:tag"))
}

/// Lowers every stage that is needed, in the order of the file.
pub(super) fn lower_plan(
    plan: &Plan<'_>,
    graph: &mut Graph,
) -> Result<(Target, Outline), Diagnostic> {
    let mut heirs = vec![0; plan.stages.len()];
    heirs[plan.target] += 1;
    for stage in plan.stages.iter().filter(|stage| stage.reachable) {
        if let Place::Stage(base) = stage.base {
            heirs[base] += 1;
        }
    }
    let mut done: Vec<Option<Done>> = Vec::with_capacity(plan.stages.len());
    for (index, stage) in plan.stages.iter().enumerate() {
        if !stage.reachable {
            done.push(None);
            continue;
        }
        let inherited = match stage.base {
            Place::Stage(base) => hand_on(plan, &mut done, base, stage.from.image.span)?,
            _ => None,
        };
        let result = stage::lower_stage(plan, index, inherited, &done, graph)?;
        done.push(Some(Done::new(result, heirs[index])));
    }
    let outline = outline::describe(plan, &done)?;
    let Some(result) = hand_on(plan, &mut done, plan.target, Span::default())? else {
        return Err(Diagnostic::error(Span::default(), "the target was not reached"));
    };
    Ok((finish(plan, result), outline))
}

/// What a stage hands on to who needs it at `span`; nothing where it is not done.
fn hand_on(
    plan: &Plan<'_>,
    done: &mut [Option<Done>],
    stage: usize,
    span: Span,
) -> Result<Option<StageResult>, Diagnostic> {
    let Some(Some(stage)) = done.get_mut(stage) else { return Ok(None) };
    stage.hand_on(&plan.budget).map_err(|reason| Diagnostic::error(span, reason))
}

fn finish(plan: &Plan<'_>, result: StageResult) -> Target {
    let mut config: ImageConfig = result.config;
    for (name, value) in &plan.options.labels {
        config.labels.insert(name.clone(), value.clone());
    }
    let platform = if plan.options.platforms.is_empty() {
        result.image_platform
    } else {
        plan.platform.clone()
    };
    Target {
        platform,
        snapshot: result.snapshot,
        config,
        history: result.history,
        base: result.base,
        epoch: plan.epoch,
    }
}

#[cfg(test)]
mod tests {
    use super::{circle, familiar};

    #[test]
    fn circles_are_found() {
        assert_eq!(circle(&[vec![], vec![0], vec![0, 1]]), None);
        assert!(circle(&[vec![1], vec![0]]).is_some());
        assert!(circle(&[vec![0]]).is_some());
        let chain: Vec<Vec<usize>> =
            (0..100_000).map(|i| if i == 0 { vec![] } else { vec![i - 1] }).collect();
        assert_eq!(circle(&chain), None);
    }

    #[test]
    fn familiar_names() {
        for (name, expect) in
            [("docker.io/library/a:latest", "a"), ("a:1", "a:1"), ("docker.io/x/y", "x/y")]
        {
            assert_eq!(familiar(name), expect);
        }
    }
}
