//! What a generated build is made of, and its Dockerfile. Everything that a test may change is a field here, so that
//! the model (`model.rs`) reads the same description as the builder, but none of the builder's code.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Something in a folder or an image layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Folder(u32),
    File { data: String, mode: u32 },
    Link(String),
}

/// A source of ADD that is a checkout.
pub(super) const GIT: &str = "https://example.org/some.git";

/// Relative paths, parents always there.
pub(super) type Items = BTreeMap<String, Item>;

/// One build: Dockerfile, context and everything from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) stages: Vec<Stage>,
    pub(super) context: Items,
    pub(super) ignore: Vec<String>,
    pub(super) args: BTreeMap<String, String>,
    pub(super) proxy: Option<String>,
    pub(super) image: Image,
    pub(super) platform: &'static str,
    /// Where the branch of the repository [`GIT`] is.
    pub(super) commit: u32,
    /// How the Dockerfile is laid out: comments, blanks.
    pub(super) layout: u32,
}

/// The image `base`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) layers: Vec<Items>,
    /// Part of the diff ids: the same files packed in another way.
    pub(super) packing: u32,
    /// Part of the manifest's digest alone.
    pub(super) manifest: u32,
    pub(super) env: Vec<(String, String)>,
    pub(super) label: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stage {
    pub(super) from: From,
    pub(super) lines: Vec<Line>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Scratch,
    Image,
    Stage(usize),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Run(Run),
    Copy(Copy),
    Inline { name: String, text: String, dest: String },
    Env(String, String),
    Arg(String, Option<String>),
    Label(String),
    Cmd(String),
    User(String),
    Workdir(String),
    Shell(String),
}

/// What the fake RUN does; its layer is a function of what it may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// `sees NAME`, `const NAME`, `part NAME PATH`, `rm PATH`, and what else stands in the command.
    pub(super) command: String,
    pub(super) form: Form,
    pub(super) mounts: Vec<Mount>,
    pub(super) network_none: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Shell,
    Exec,
    Heredoc,
    Script,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mount {
    Bind { from: Option<usize>, source: String, target: String, write: bool },
    Cache { id: Option<String>, target: String },
    Secret { id: String },
    Tmpfs { target: String, size: u32 },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) add: bool,
    /// The stage that is copied from; `None` is the context.
    pub(super) from: Option<usize>,
    pub(super) sources: Vec<String>,
    pub(super) dest: String,
    pub(super) chown: Option<String>,
    pub(super) chmod: Option<String>,
    pub(super) link: bool,
    pub(super) parents: bool,
    pub(super) exclude: Vec<String>,
}

/// The Dockerfile's text, and where each stage's lines begin in it.
pub(super) struct Rendered {
    pub(super) text: String,
    pub(super) starts: Vec<Vec<usize>>,
}

impl Case {
    pub(super) fn render(&self) -> Rendered {
        let mut text = match self.layout % 3 {
            0 => String::new(),
            1 => "# a comment\n\n".to_owned(),
            _ => "# syntax=docker/dockerfile:1\n# another\n".to_owned(),
        };
        let mut starts = Vec::new();
        for (number, stage) in self.stages.iter().enumerate() {
            let from = match stage.from {
                From::Scratch => "scratch".to_owned(),
                From::Image => "base".to_owned(),
                From::Stage(stage) => format!("s{stage}"),
            };
            let _ = writeln!(text, "FROM {from} AS s{number}");
            let mut lines = Vec::new();
            for line in &stage.lines {
                if (self.layout / 3) % 2 == 1 {
                    text.push_str("\n# in between\n");
                }
                lines.push(text.len());
                line.render(self.layout, &mut text);
            }
            starts.push(lines);
        }
        Rendered { text, starts }
    }
}

impl Line {
    fn render(&self, layout: u32, text: &mut String) {
        // Blanks between the words of an instruction mean nothing.
        let gap = if (layout / 6) % 2 == 1 { "   " } else { " " };
        let _ = match self {
            Self::Run(run) => return run.render(gap, text),
            Self::Copy(copy) => return copy.render(gap, text),
            Self::Inline { name, text: body, dest } => {
                write!(text, "COPY{gap}<<{name}{gap}{dest}\n{body}\n{name}\n")
            }
            Self::Env(name, value) => writeln!(text, "ENV{gap}{name}={value}"),
            Self::Arg(name, None) => writeln!(text, "ARG{gap}{name}"),
            Self::Arg(name, Some(value)) => writeln!(text, "ARG{gap}{name}={value}"),
            Self::Label(value) => writeln!(text, "LABEL{gap}label={value}"),
            Self::Cmd(value) => writeln!(text, "CMD{gap}[\"{value}\"]"),
            Self::User(user) => writeln!(text, "USER{gap}{user}"),
            Self::Workdir(path) => writeln!(text, "WORKDIR{gap}{path}"),
            Self::Shell(program) => writeln!(text, "SHELL{gap}[\"{program}\", \"-c\"]"),
        };
    }
}

impl Run {
    fn render(&self, gap: &str, text: &mut String) {
        text.push_str("RUN");
        for mount in &self.mounts {
            text.push_str(gap);
            let _ = match mount {
                Mount::Bind { from, source, target, write } => {
                    let from = from.map(|stage| format!(",from=s{stage}")).unwrap_or_default();
                    let write = if *write { ",rw" } else { "" };
                    write!(text, "--mount=type=bind{from},source={source},target={target}{write}")
                }
                Mount::Cache { id, target } => {
                    let id = id.as_ref().map(|id| format!(",id={id}")).unwrap_or_default();
                    write!(text, "--mount=type=cache{id},target={target}")
                }
                Mount::Secret { id } => write!(text, "--mount=type=secret,id={id}"),
                Mount::Tmpfs { target, size } => {
                    write!(text, "--mount=type=tmpfs,target={target},size={size}")
                }
            };
        }
        if self.network_none {
            let _ = write!(text, "{gap}--network=none");
        }
        let command = &self.command;
        let _ = match self.form {
            Form::Shell => writeln!(text, "{gap}{command}"),
            Form::Exec => writeln!(text, "{gap}[\"/bin/fake\", \"{command}\"]"),
            Form::Heredoc => write!(text, "{gap}<<EOT\n{command}\nEOT\n"),
            Form::Script => write!(text, "{gap}<<EOT\n#!/bin/fake\n{command}\nEOT\n"),
        };
    }
}

impl Copy {
    fn render(&self, gap: &str, text: &mut String) {
        text.push_str(if self.add { "ADD" } else { "COPY" });
        let mut flag = |flag: String| {
            text.push_str(gap);
            text.push_str(&flag);
        };
        if let Some(stage) = self.from {
            flag(format!("--from=s{stage}"));
        }
        if let Some(chown) = &self.chown {
            flag(format!("--chown={chown}"));
        }
        if let Some(chmod) = &self.chmod {
            flag(format!("--chmod={chmod}"));
        }
        if self.link {
            flag("--link".to_owned());
        }
        if self.parents {
            flag("--parents".to_owned());
        }
        for pattern in &self.exclude {
            flag(format!("--exclude={pattern}"));
        }
        for word in self.sources.iter().chain([&self.dest]) {
            flag(word.clone());
        }
        text.push('\n');
    }
}
