//! One stage: its instructions in order, each changing the state or adding a node.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::args::{self, Budget, PAIR_BYTES, Variables, expand_word};
use super::outline::Described;
use super::stages::{Place, Plan, StagePlan};
use super::{HistoryEntry, NamedContext, copy, lints, ports, run};
use crate::config::{DEFAULT_PATH, ImageConfig};
use crate::diagnostic::Diagnostic;
use crate::duration;
use crate::expand::{Lookup, Quotes, expand};
use crate::graph::{
    CopyFrom, CopyOp, CopySource, Graph, ImageKey, ImageOp, Input, MkdirOp, NodeId, Op, Step,
    Unpack,
};
use crate::instruction::{Argument, Command, Healthcheck, Instruction, Pair, Word};
use crate::lines::Comment;
use crate::platform::Platform;
use crate::source::Span;
use crate::tree::Statement;

/// A stage that is done.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) snapshot: Input,
    pub(super) described: Described,
    /// What stages that start from it take over: nothing after the last of them.
    heritage: Option<StageResult>,
    /// How many will still take it over.
    heirs: usize,
}

impl Done {
    pub(super) fn new(mut result: StageResult, heirs: usize) -> Self {
        let described = std::mem::take(&mut result.described);
        Self {
            snapshot: result.snapshot,
            described,
            heritage: (heirs > 0).then_some(result),
            heirs,
        }
    }

    /// What the next stage or the target takes over. The last one gets it as it is, so that a long line of stages does not
    /// copy at each what the first ones said.
    ///
    /// # Errors
    /// There is no room for a copy.
    pub(super) fn hand_on(&mut self, budget: &Budget) -> Result<Option<StageResult>, String> {
        self.heirs = self.heirs.saturating_sub(1);
        if self.heirs == 0 {
            return Ok(self.heritage.take());
        }
        budget.add(self.heritage.as_ref().map_or(0, StageResult::bytes));
        budget.check(0)?;
        Ok(self.heritage.clone())
    }
}

/// What a stage hands to its children and to the target.
#[derive(Clone, Debug)]
pub(super) struct StageResult {
    pub(super) snapshot: Input,
    pub(super) config: ImageConfig,
    /// Shared: a child stage starts with all lines of its parents.
    pub(super) history: Vec<Arc<HistoryEntry>>,
    pub(super) base: Option<ImageKey>,
    /// What RUN and platform arguments go by.
    pub(super) platform: Platform,
    /// What the image says it is for.
    pub(super) image_platform: Platform,
    pub(super) arguments: Vec<(String, Option<String>)>,
    /// What the stage's own instructions can be given.
    pub(super) described: Described,
    /// A WORKDIR of this file came before.
    workdir_set: bool,
    /// The base's configuration is not known.
    unknown: bool,
    pub(super) env: Variables,
    /// Where each variable stands in the configuration's environment.
    env_places: HashMap<String, usize>,
    /// Whether the environment has what every stage starts with.
    prepared: bool,
}

impl StageResult {
    /// About how many bytes a copy takes.
    fn bytes(&self) -> usize {
        let config = &self.config;
        let pair = |(name, value): (&String, &String)| name.len() + value.len() + PAIR_BYTES;
        let one = |text: &String| text.len() + PAIR_BYTES;
        let env = config.env.iter().map(|(name, value)| pair((name, value)));
        let places = self.env_places.keys().map(one);
        let arguments = self.arguments.iter();
        let arguments = arguments.map(|(name, value)| one(name) + value.as_ref().map_or(0, one));
        let ports = config.exposed_ports.iter().chain(&config.volumes).map(one);
        let lists = [&config.entrypoint, &config.cmd].into_iter().flatten().flatten();
        let lists = lists.chain(&config.shell).chain(&config.on_build).map(one);
        let texts = [&config.user, &config.working_dir, &config.author].map(one);
        let pairs = env.chain(config.labels.iter().map(pair)).chain(arguments).chain(places);
        pairs.chain(ports).chain(lists).chain(texts).sum::<usize>()
            + self.env.bytes()
            + self.history.len() * size_of::<Arc<HistoryEntry>>()
    }
}

/// A stage while it is lowered.
pub(super) struct Stage<'p, 'a> {
    pub(super) plan: &'p Plan<'a>,
    pub(super) stage: &'p StagePlan<'a>,
    pub(super) index: usize,
    pub(super) done: &'p [Option<Done>],
    pub(super) result: StageResult,
    pub(super) proxy: Arc<Vec<(String, String)>>,
    cmd_set: bool,
    steps_total: usize,
    steps_done: usize,
    in_trigger: bool,
    /// The instruction that is lowered.
    current: &'p Statement,
    /// Where CMD, ENTRYPOINT and HEALTHCHECK stood last.
    last: BTreeMap<&'static str, Span>,
}

/// Lowers a stage; those before it are done as far as they are needed, and the one that it starts from has handed on
/// what it is.
pub(super) fn lower_stage(
    plan: &Plan<'_>,
    index: usize,
    inherited: Option<StageResult>,
    done: &[Option<Done>],
    graph: &mut Graph,
) -> Result<StageResult, Diagnostic> {
    let stage = &plan.stages[index];
    let mut lowering = Stage {
        plan,
        stage,
        index,
        done,
        result: empty_result(plan, stage),
        proxy: Arc::new(args::proxies(&plan.options.build_args)),
        cmd_set: false,
        steps_total: steps_total(stage),
        steps_done: 0,
        in_trigger: false,
        current: stage.statement,
        last: BTreeMap::new(),
    };
    lowering.start(inherited, graph)?;
    if stage.replaced {
        return Ok(lowering.result);
    }
    lowering.prepare();
    let own = stage.statements.iter().copied().map(|statement| (false, statement));
    for (in_trigger, statement) in stage.triggers.iter().map(|one| (true, one)).chain(own) {
        (lowering.in_trigger, lowering.current) = (in_trigger, statement);
        lowering.instruction(statement, graph)?;
        let room = plan.budget.check(graph.bytes());
        room.map_err(|reason| Diagnostic::error(statement.span, reason))?;
    }
    Ok(lowering.result)
}

fn empty_result(plan: &Plan<'_>, stage: &StagePlan<'_>) -> StageResult {
    StageResult {
        snapshot: Input::Scratch,
        config: ImageConfig { working_dir: "/".to_owned(), ..ImageConfig::default() },
        history: Vec::new(),
        base: None,
        platform: stage.platform.clone().unwrap_or_else(|| plan.platform.clone()),
        image_platform: plan.platform.clone(),
        arguments: Vec::new(),
        described: Described::default(),
        workdir_set: false,
        unknown: false,
        env: Variables::default(),
        env_places: HashMap::new(),
        prepared: false,
    }
}

/// The M of `[stage N/M]`: the base's image and what makes layers.
fn steps_total(stage: &StagePlan<'_>) -> usize {
    let base = usize::from(matches!(stage.base, Place::Image(_) | Place::Folder(_)));
    let statements = stage.triggers.iter().chain(stage.statements.iter().copied());
    let layers = statements.filter(|statement| {
        matches!(
            statement.instruction,
            Instruction::Run(_)
                | Instruction::Copy(_)
                | Instruction::Add(_)
                | Instruction::Workdir(_)
        )
    });
    base + layers.count()
}

impl Stage<'_, '_> {
    /// Takes over what the base has.
    fn start(
        &mut self,
        inherited: Option<StageResult>,
        graph: &mut Graph,
    ) -> Result<(), Diagnostic> {
        let stage = self.stage;
        match &stage.base {
            Place::Stage(_) => {
                let span = stage.from.image.span;
                self.result = inherited.ok_or_else(|| self.too_late(&stage.base_name, span))?;
                self.result.config.on_build.clear();
            }
            Place::Empty => {}
            Place::Folder(name) => {
                self.result.snapshot = self.folder(name, stage.span, graph);
            }
            Place::Image(key) => {
                let image = self.plan.image(key)?;
                self.check_base(key, image);
                self.result.unknown = image.unknown;
                self.result.snapshot = self.image(key, stage.span, graph)?;
                self.result.config = image.config.clone();
                self.result.config.on_build.clear();
                self.result.base = Some(key.clone());
                self.result.image_platform = image.platform.clone();
                self.result.platform =
                    match (&stage.platform, self.plan.options.platforms.is_empty()) {
                        (None, true) if image.platform == self.plan.options.build_platform => {
                            image.platform.clone()
                        }
                        _ => key.platform.clone(),
                    };
            }
        }
        Ok(())
    }

    /// PATH is always there, also in the image; the base's environment is the first to be seen.
    fn prepare(&mut self) {
        if std::mem::replace(&mut self.result.prepared, true) {
            return;
        }
        let config = &mut self.result.config;
        if !config.env.iter().any(|(name, _)| name == "PATH")
            && self.result.platform.os != "windows"
        {
            config.env.push(("PATH".to_owned(), DEFAULT_PATH.to_owned()));
        }
        let places = self.result.config.env.iter().enumerate();
        self.result.env_places = places.map(|(at, (name, _))| (name.clone(), at)).collect();
        for (name, value) in &self.result.config.env {
            self.result.env.set(name, value);
        }
    }

    pub(super) fn too_late(&self, name: &str, span: Span) -> Diagnostic {
        let message = format!(
            "cannot copy from stage {name:?}, it needs to be defined before current stage {:?}",
            self.stage.label
        );
        Diagnostic::error(span, message).help("move the stage up in the file")
    }

    /// The node of an image's layers.
    pub(super) fn image(
        &mut self,
        key: &ImageKey,
        span: Span,
        graph: &mut Graph,
    ) -> Result<Input, Diagnostic> {
        let image = self.plan.image(key)?;
        if image.diff_ids.is_empty() {
            return Ok(Input::Scratch);
        }
        let name = match &key.name {
            crate::graph::ImageName::Reference(name) | crate::graph::ImageName::Context(name) => {
                name
            }
        };
        let text = format!("FROM {name}");
        let step =
            if span == self.stage.span { self.step(&text, span) } else { plain_step(&text, span) };
        let op = Op::Image(ImageOp {
            key: key.clone(),
            digest: image.digest.clone(),
            diff_ids: image.diff_ids.clone(),
        });
        Ok(Input::Node(graph.add(op, Some(key.platform.clone()), false, step)))
    }

    /// The files of a context: those of the caller, or a snapshot of what was fetched.
    pub(super) fn context(&self, name: &str, span: Span, graph: &mut Graph) -> CopyFrom {
        let context = self.plan.context(name);
        if let Some(fetched) = context_node(context, span, graph) {
            return CopyFrom::Snapshot(Input::Node(fetched));
        }
        let step = plain_step(&format!("[internal] load context {name}"), span);
        CopyFrom::Context(graph.add(Op::Context { name: name.to_owned() }, None, false, step))
    }

    /// A context as a snapshot: everything that its ignore file leaves.
    pub(super) fn folder(&mut self, name: &str, span: Span, graph: &mut Graph) -> Input {
        self.part_of_folder(name, "/", span, graph)
    }

    /// A context as a snapshot of which `path` is read; of the caller's folders no more is taken.
    pub(super) fn part_of_folder(
        &mut self,
        name: &str,
        path: &str,
        span: Span,
        graph: &mut Graph,
    ) -> Input {
        let context = match self.context(name, span, graph) {
            CopyFrom::Snapshot(fetched) => return fetched,
            context => context,
        };
        let cleaned = crate::ignore::clean(path);
        let source = CopySource {
            from: context,
            path: if cleaned.is_empty() { "/".to_owned() } else { format!("/{cleaned}") },
            unpack: Unpack::Never,
        };
        let op = Op::Copy(Box::new(copy_to_root(source, !cleaned.is_empty())));
        let step = plain_step(&format!("[internal] load {path} of context {name}"), span);
        Input::Node(graph.add(op, None, false, step))
    }

    /// `[stage 2/5] TEXT`, and one step further.
    pub(super) fn step(&mut self, text: &str, span: Span) -> Step {
        self.steps_done += 1;
        let platform = if self.plan.options.platforms.len() > 1 {
            format!("{} ", self.result.platform)
        } else {
            String::new()
        };
        let stage = if self.plan.stages.len() == 1 {
            String::new()
        } else {
            format!("{} ", self.stage.label)
        };
        let width = self.steps_total.to_string().len();
        let trigger = if self.in_trigger { "ONBUILD " } else { "" };
        Step {
            label: format!(
                "[{platform}{stage}{:>width$}/{}] {trigger}{text}",
                self.steps_done, self.steps_total
            ),
            text: text.to_owned(),
            stage: self.stage.label.clone(),
            span,
        }
    }

    pub(super) fn expand(&self, word: &Word) -> Result<String, Diagnostic> {
        let escape = if self.in_trigger { '\\' } else { self.plan.dockerfile.escape };
        let expanded = expand_word(word, escape, &self.result.env, &self.plan.budget)?;
        self.check_variables(&expanded.missing, word.span);
        Ok(expanded.text)
    }

    /// What a step is called: variables that are known are filled in, quotes stay.
    pub(super) fn display(&self, statement: &Statement) -> String {
        let text =
            statement.text.split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim());
        let shown = expand(text, self.plan.dockerfile.escape, Quotes::Keep, &self.result.env);
        let shown = shown.ok().map(|expanded| expanded.text);
        let shown = shown.filter(|shown| self.plan.budget.take(shown, text).is_ok());
        let shown = shown.unwrap_or_else(|| text.to_owned());
        format!("{} {shown}", statement.keyword.text.to_uppercase()).trim_end().to_owned()
    }

    /// The instruction that is lowered.
    pub(super) fn current_span(&self) -> Span {
        self.current.span
    }

    /// The comments above it.
    pub(super) fn comments(&self) -> &[Comment] {
        &self.current.comments
    }

    /// Nothing is known of the base's configuration.
    pub(super) fn base_is_unknown(&self) -> bool {
        self.result.unknown
    }

    /// Remembers where an instruction stands; gives where it stood before.
    pub(super) fn last_place(&mut self, name: &'static str, span: Span) -> Option<Span> {
        self.last.insert(name, span)
    }

    /// Remembers that there was a WORKDIR; whether there was one before.
    pub(super) fn mark_workdir(&mut self) -> bool {
        std::mem::replace(&mut self.result.workdir_set, true)
    }

    pub(super) fn remember(&mut self, created_by: String, node: Option<NodeId>) {
        self.plan.budget.add(created_by.len());
        self.result.history.push(Arc::new(HistoryEntry { created_by, node }));
    }

    fn instruction(&mut self, statement: &Statement, graph: &mut Graph) -> Result<(), Diagnostic> {
        match &statement.instruction {
            Instruction::From(_) => Ok(()),
            Instruction::Arg(arguments) => self.arg(arguments),
            Instruction::Env(pairs) => self.env(pairs),
            Instruction::Label(pairs) => self.label(pairs),
            Instruction::Maintainer(word) => {
                self.result.config.author.clone_from(&word.text);
                self.remember(format!("MAINTAINER {}", word.text), None);
                Ok(())
            }
            Instruction::Run(command) => run::lower(self, command, statement, graph),
            Instruction::Copy(copy) => copy::lower_copy(self, copy, statement, graph),
            Instruction::Add(add) => copy::lower_add(self, add, statement, graph),
            Instruction::Workdir(word) => self.workdir(word, statement, graph),
            Instruction::User(word) => self.user(word),
            Instruction::Volume(words) => self.volume(words),
            Instruction::Expose(words) => self.expose(words),
            Instruction::Stopsignal(word) => self.stopsignal(word),
            Instruction::Shell(words) => {
                self.result.config.shell.clone_from(words);
                self.remember(format!("SHELL [{}]", words.join(" ")), None);
                Ok(())
            }
            Instruction::Cmd(command) => {
                self.check_command("CMD", Some(command));
                let words = self.with_shell(command);
                self.remember(format!("CMD {}", quoted(&words)), None);
                self.result.config.cmd = Some(words);
                self.result.config.args_escaped = true;
                self.cmd_set = true;
                Ok(())
            }
            Instruction::Entrypoint(command) => {
                self.check_command("ENTRYPOINT", Some(command));
                let words = self.with_shell(command);
                self.remember(format!("ENTRYPOINT {}", quoted(&words)), None);
                self.result.config.entrypoint = (!words.is_empty()).then_some(words);
                if !self.cmd_set {
                    self.result.config.cmd = None;
                }
                Ok(())
            }
            Instruction::Healthcheck(check) => {
                self.check_command("HEALTHCHECK", None);
                self.remember(format!("HEALTHCHECK {}", go_healthcheck(check)), None);
                self.result.config.healthcheck = Some(check.clone());
                Ok(())
            }
            Instruction::Onbuild(onbuild) => {
                self.result.config.on_build.push(onbuild.trigger.clone());
                Ok(())
            }
        }
    }

    /// The shell form gets the shell in front; the exec form stays.
    pub(super) fn with_shell(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(text) => self.shell_words(text),
        }
    }

    pub(super) fn shell_words(&self, text: &str) -> Vec<String> {
        let shell = &self.result.config.shell;
        let mut words = if shell.is_empty() {
            vec!["/bin/sh".to_owned(), "-c".to_owned()]
        } else {
            shell.clone()
        };
        words.push(text.to_owned());
        words
    }

    fn arg(&mut self, arguments: &[Argument]) -> Result<(), Diagnostic> {
        let mut texts = Vec::new();
        for argument in arguments {
            let name = &argument.name.text;
            self.check_secret("ARG", name, argument.name.span);
            let given = self.plan.options.build_args.get(name).cloned();
            let value = match (given, &argument.value) {
                (Some(given), _) => Some(given),
                (None, Some(default)) => Some(self.expand(default)?),
                (None, None) => self.plan.global_values().get(name).map(str::to_owned),
            };
            if let Some(value) = &value {
                if !lints::GIVEN.contains(&name.as_str()) {
                    self.result.env.set(name, value);
                }
                texts.push(format!("{name}={value}"));
            } else {
                texts.push(name.clone());
            }
            self.result.described.argument(argument, value.clone(), self.current);
            self.result.arguments.push((name.clone(), value));
        }
        self.remember(format!("ARG {}", texts.join(" ")), None);
        Ok(())
    }

    /// All values of one instruction see the environment from before it.
    fn pairs(&self, pairs: &[Pair]) -> Result<Vec<(String, String)>, Diagnostic> {
        pairs.iter().map(|pair| Ok((self.expand(&pair.name)?, self.expand(&pair.value)?))).collect()
    }

    fn env(&mut self, pairs: &[Pair]) -> Result<(), Diagnostic> {
        let values = self.pairs(pairs)?;
        self.check_pairs("ENV", pairs);
        for ((name, _), pair) in values.iter().zip(pairs) {
            self.check_secret("ENV", name, pair.name.span);
        }
        let mut text = "ENV".to_owned();
        for (name, value) in values {
            text.push_str(&format!(" {name}={value}"));
            self.result.env.set(&name, &value);
            self.set_config_env(name, value);
        }
        self.remember(text, None);
        Ok(())
    }

    /// A variable that is there keeps its place.
    fn set_config_env(&mut self, name: String, value: String) {
        let env = &mut self.result.config.env;
        match self.result.env_places.get(&name) {
            Some(&at) => env[at].1 = value,
            None => {
                self.result.env_places.insert(name.clone(), env.len());
                env.push((name, value));
            }
        }
    }

    fn label(&mut self, pairs: &[Pair]) -> Result<(), Diagnostic> {
        let values = self.pairs(pairs)?;
        self.check_pairs("LABEL", pairs);
        let mut text = "LABEL".to_owned();
        for (name, value) in values {
            text.push_str(&format!(" {name}={value}"));
            self.result.config.labels.insert(name, value);
        }
        self.remember(text, None);
        Ok(())
    }

    fn workdir(
        &mut self,
        word: &Word,
        statement: &Statement,
        graph: &mut Graph,
    ) -> Result<(), Diagnostic> {
        let path = self.expand(word)?;
        self.check_workdir(&path, word.span);
        let path = if path.starts_with('/') {
            path
        } else {
            format!("{}/{path}", self.result.config.working_dir)
        };
        let path = format!("/{}", crate::ignore::clean(&path));
        self.result.config.working_dir.clone_from(&path);
        let mut node = None;
        if path != "/" {
            let step = self.step(&self.display(statement), statement.span);
            let op = Op::Mkdir(MkdirOp {
                base: self.result.snapshot,
                path: path.clone(),
                user: self.result.config.user.clone(),
                epoch: self.plan.epoch,
            });
            let id = graph.add(op, None, false, step);
            self.result.snapshot = Input::Node(id);
            node = Some(id);
        }
        self.remember(format!("WORKDIR {path}"), node);
        Ok(())
    }

    fn user(&mut self, word: &Word) -> Result<(), Diagnostic> {
        let user = self.expand(word)?;
        self.remember(format!("USER {user}"), None);
        self.result.config.user = user;
        Ok(())
    }

    fn volume(&mut self, words: &[Word]) -> Result<(), Diagnostic> {
        let mut paths = Vec::new();
        for word in words {
            let path = self.expand(word)?;
            if path.is_empty() {
                return Err(Diagnostic::error(
                    word.span,
                    "VOLUME specified can not be an empty string",
                ));
            }
            self.result.config.volumes.insert(path.clone());
            paths.push(path);
        }
        self.remember(format!("VOLUME [{}]", paths.join(" ")), None);
        Ok(())
    }

    fn expose(&mut self, words: &[Word]) -> Result<(), Diagnostic> {
        let mut keys = Vec::new();
        for word in words {
            let (escape, env) = (self.plan.dockerfile.escape, &self.result.env);
            let expanded = expand_word(word, escape, env, &self.plan.budget)?;
            self.check_variables(&expanded.missing, word.span);
            for port in expanded.words {
                self.check_port(&port, word.span);
                let found = ports::expand_ports(&port).map_err(|why| {
                    Diagnostic::error(word.span, why).help(
                        "a port is 0 to 65535, a range 8000-8010, a protocol tcp, udp or sctp",
                    )
                })?;
                keys.extend(found);
            }
        }
        self.remember(format!("EXPOSE [{}]", keys.join(" ")), None);
        self.result.config.exposed_ports.extend(keys);
        Ok(())
    }

    fn stopsignal(&mut self, word: &Word) -> Result<(), Diagnostic> {
        let signal = self.expand(word)?;
        if !is_signal(&signal) {
            return Err(Diagnostic::error(word.span, format!("invalid signal: {signal}"))
                .help("a name such as SIGTERM or a number above 0"));
        }
        self.remember(format!("STOPSIGNAL {signal}"), None);
        self.result.config.stop_signal = signal;
        Ok(())
    }
}

/// The node of a context that has to be fetched; `None` for folders of the caller.
pub fn context_node(context: &NamedContext, span: Span, graph: &mut Graph) -> Option<NodeId> {
    match context {
        NamedContext::Git(git) => {
            let step = plain_step(&format!("[internal] load git source {git}"), span);
            Some(graph.add(Op::Git(git.clone()), None, false, step))
        }
        NamedContext::File { file, unpack } => {
            let step = plain_step("[internal] load remote build context", span);
            let fetched = graph.add(Op::Http(file.clone()), None, false, step.clone());
            let source = CopySource {
                from: CopyFrom::Remote(fetched),
                path: String::new(),
                unpack: if *unpack { Unpack::IfArchive } else { Unpack::Never },
            };
            Some(graph.add(Op::Copy(Box::new(copy_to_root(source, false))), None, false, step))
        }
        NamedContext::Local
        | NamedContext::Image
        | NamedContext::Scratch
        | NamedContext::Stage(_) => None,
    }
}

/// A COPY of one source to an empty root.
fn copy_to_root(source: CopySource, parents: bool) -> CopyOp {
    CopyOp {
        base: Input::Scratch,
        sources: vec![source],
        dest: "/".to_owned(),
        chown: None,
        chmod: None,
        link: false,
        parents,
        exclude: Vec::new(),
    }
}

/// A step that counts for no stage.
fn plain_step(text: &str, span: Span) -> Step {
    Step { label: text.to_owned(), text: text.to_owned(), stage: String::new(), span }
}

/// Go's `%q` of a list: `["a" "b"]`.
fn quoted(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| go_quote(word)).collect();
    format!("[{}]", words.join(" "))
}

/// Go's `strconv.Quote`.
fn go_quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                out.push_str(&format!("\\x{:02x}", c as u32))
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Go's `%+v` of the structure.
fn go_healthcheck(check: &Healthcheck) -> String {
    format!(
        "{{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        check.test.join(" "),
        duration::print(check.interval),
        duration::print(check.timeout),
        duration::print(check.start_period),
        duration::print(check.start_interval),
        check.retries
    )
}

/// moby/sys/signal: a number that is not 0, or a Linux name with or without SIG.
fn is_signal(text: &str) -> bool {
    const NAMES: &[&str] = &[
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT",
        "KILL", "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM",
        "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
    ];
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |offset: &str, max: u32| {
        offset.is_empty() || offset[1..].parse::<u32>().is_ok_and(|n| n >= 1 && n <= max)
    };
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return (offset.is_empty() || offset.starts_with('+')) && real_time(offset, 15);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return (offset.is_empty() || offset.starts_with('-')) && real_time(offset, 14);
    }
    NAMES.contains(&name)
}

impl Stage<'_, '_> {
    /// Files of a place as a source of COPY or a mount.
    pub(super) fn stage_snapshot(
        &self,
        stage: usize,
        name: &str,
        span: Span,
    ) -> Result<Input, Diagnostic> {
        match self.done.get(stage).and_then(Option::as_ref) {
            Some(result) if stage != self.index => Ok(result.snapshot),
            _ => Err(self.too_late(name, span)),
        }
    }
}
