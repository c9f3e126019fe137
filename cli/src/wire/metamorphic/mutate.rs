//! One change to a build. Some of them nobody can see: then nothing may run.

use super::case::{Case, Form, From, Item, Line, Mount};
use super::generate::{Chance, file};

/// A changed build.
pub(super) struct Change {
    pub(super) name: &'static str,
    pub(super) case: Case,
    /// No step can see it.
    pub(super) unseen: bool,
}

/// Changes that no step can see.
const UNSEEN: &[&str] = &[
    "layout",
    "proxy",
    "unused argument",
    "label",
    "command",
    "manifest",
    "image label",
    "stages",
];
/// Changes of the context.
const FILES: &[&str] = &[
    "content",
    "mode",
    "folder mode",
    "link",
    "new file",
    "removed file",
    "renamed file",
    "ignore",
];
/// Changes of the Dockerfile and the command line.
const WORDS: &[&str] = &[
    "argument",
    "line",
    "line",
    "line",
    "new line",
    "removed line",
    "platform",
    "image",
    "packing",
    "image env",
    "commit",
];

pub(super) fn mutate(chance: &mut Chance, case: &Case) -> Change {
    let kind = *chance.pick(&[UNSEEN, FILES, FILES, WORDS]);
    let name = *chance.pick(kind);
    let mut changed = case.clone();
    match kind {
        UNSEEN => unseen(chance, name, &mut changed),
        FILES => files(chance, name, &mut changed),
        _ => words(chance, name, &mut changed),
    }
    Change { name, case: changed, unseen: kind == UNSEEN }
}

fn unseen(chance: &mut Chance, name: &str, case: &mut Case) {
    match name {
        "layout" => case.layout += 1 + u32::try_from(chance.below(10)).expect("small"),
        "proxy" => case.proxy = Some(format!("http://proxy{}", chance.below(9))),
        "unused argument" => {
            case.args.insert("UNUSED".to_owned(), chance.below(99).to_string());
        }
        "manifest" => case.image.manifest += 1,
        "image label" => case.image.label.push('x'),
        "stages" => swap_stages(chance, case),
        _ => {
            let stage = chance.below(case.stages.len());
            let lines = &mut case.stages[stage].lines;
            let text = format!("v{}", chance.below(99));
            let line = if name == "label" { Line::Label(text) } else { Line::Cmd(text) };
            let at = chance.below(lines.len() + 1);
            lines.insert(at, line);
        }
    }
}

/// Two stages that do not need each other change places; the last one stays the target.
fn swap_stages(chance: &mut Chance, case: &mut Case) {
    if case.stages.len() < 3 {
        return;
    }
    let first = chance.below(case.stages.len() - 2);
    let second = first + 1;
    let mut needs = false;
    each_reference(&mut case.stages[second..=second], &mut |stage| needs |= *stage == first);
    if needs {
        return;
    }
    case.stages.swap(first, second);
    each_reference(&mut case.stages, &mut |stage| {
        *stage = match *stage {
            at if at == first => second,
            at if at == second => first,
            at => at,
        }
    });
}

/// Calls `act` for everything that names a stage.
fn each_reference(stages: &mut [super::case::Stage], act: &mut dyn FnMut(&mut usize)) {
    for stage in stages {
        if let From::Stage(stage) = &mut stage.from {
            act(stage);
        }
        for line in &mut stage.lines {
            match line {
                Line::Copy(copy) => copy.from.iter_mut().for_each(&mut *act),
                Line::Run(run) => {
                    for mount in &mut run.mounts {
                        if let Mount::Bind { from: Some(from), .. } = mount {
                            act(from);
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

fn files(chance: &mut Chance, name: &str, case: &mut Case) {
    let number = chance.below(1000);
    let paths = |wanted: &dyn Fn(&Item) -> bool| -> Vec<String> {
        let found = case.context.iter().filter(|(_, item)| wanted(item));
        found.map(|(path, _)| path.clone()).collect()
    };
    let is_file = |item: &Item| matches!(item, Item::File { .. });
    let is_folder = |item: &Item| matches!(item, Item::Folder(_));
    let is_link = |item: &Item| matches!(item, Item::Link(_));
    match name {
        "content" | "mode" => {
            let path = chance.pick(&paths(&is_file)).clone();
            let Some(Item::File { data, mode }) = case.context.get_mut(&path) else { return };
            if name == "mode" {
                *mode ^= *chance.pick(&[0o100, 0o001, 0o020]);
            } else if chance.percent(50) {
                // Of the same size: only what is in it tells.
                *data = data.chars().map(|c| if c == 'q' { 'r' } else { 'q' }).collect();
            } else {
                data.push_str(&number.to_string());
            }
        }
        "folder mode" => {
            let path = chance.pick(&paths(&is_folder)).clone();
            if let Some(Item::Folder(mode)) = case.context.get_mut(&path) {
                *mode ^= 0o050;
            }
        }
        "link" => {
            let path = chance.pick(&paths(&is_link)).clone();
            let to = match path.as_str() {
                "to-src" => *chance.pick(&["src", "docs", "src/lib"]),
                "src/to-main" => *chance.pick(&["main.c", "util.c"]),
                _ => *chance.pick(&["a.txt", "b.txt", "run.sh"]),
            };
            case.context.insert(path, Item::Link(to.to_owned()));
        }
        "new file" => {
            let folder = chance.pick(&paths(&is_folder)).clone();
            let end = *chance.pick(&["c", "md", "txt", "log", "h"]);
            case.context.insert(format!("{folder}/new{number}.{end}"), file("new"));
        }
        "ignore" => {
            let new = *chance.pick(&["*.log", "**/*.h", "src/empty", "docs/two.md", "unused"]);
            match case.ignore.iter().position(|old| old == new) {
                Some(at) => drop(case.ignore.remove(at)),
                None => case.ignore.insert(0, new.to_owned()),
            }
        }
        _ => {
            let path = chance.pick(&paths(&is_file)).clone();
            let item = case.context.remove(&path).expect("it is there");
            if name == "renamed file" {
                let (folder, end) = path.rsplit_once('.').unwrap_or((&path, "txt"));
                case.context.insert(format!("{folder}-{number}.{end}"), item);
            }
        }
    }
}

fn words(chance: &mut Chance, name: &str, case: &mut Case) {
    let number = chance.below(1000).to_string();
    match name {
        "argument" => drop(case.args.insert("A".to_owned(), number)),
        "platform" => {
            case.platform =
                if case.platform == "linux/amd64" { "linux/arm64" } else { "linux/amd64" };
        }
        "packing" => case.image.packing += 1,
        "commit" => case.commit += 1,
        "image env" => case.image.env.push((format!("IMAGE{number}"), number)),
        "image" => {
            let layer = chance.below(case.image.layers.len());
            case.image.layers[layer].insert(format!("etc{number}"), file(&number));
        }
        "new line" => {
            let stage = chance.below(case.stages.len());
            let lines = &mut case.stages[stage].lines;
            let at = chance.below(lines.len() + 1);
            let line = match chance.below(5) {
                0 => Line::Env("B".to_owned(), number),
                1 => Line::Arg("C".to_owned(), Some(number)),
                2 => Line::User(number),
                3 => Line::Shell(format!("/bin/{number}")),
                _ => Line::Workdir("/new".to_owned()),
            };
            lines.insert(at, line);
        }
        "removed line" => {
            let stage = chance.below(case.stages.len());
            let lines = &mut case.stages[stage].lines;
            let at = chance.below(lines.len());
            lines.remove(at);
        }
        _ => {
            let stage = chance.below(case.stages.len());
            let lines = &mut case.stages[stage].lines;
            if !lines.is_empty() {
                let at = chance.below(lines.len());
                line(chance, &mut lines[at], &number);
            }
        }
    }
}

/// Another instruction of the same kind.
fn line(chance: &mut Chance, line: &mut Line, number: &str) {
    match line {
        Line::Run(run) => match chance.below(5) {
            0 | 1 => {
                run.command.push(' ');
                run.command.push_str(number);
            }
            2 => run.form = *chance.pick(&[Form::Shell, Form::Exec, Form::Heredoc, Form::Script]),
            3 => run.network_none = !run.network_none,
            _ => mount(chance, &mut run.mounts),
        },
        Line::Copy(copy) => match chance.below(7) {
            0 => copy.dest.insert_str(0, "/else/"),
            1 => copy.chown = Some("9:9".to_owned()),
            2 => copy.chmod = Some("700".to_owned()),
            3 => copy.link = !copy.link,
            4 if copy.from.is_none() => copy.exclude.push("**/*.h".to_owned()),
            5 => copy.sources.rotate_left(1),
            _ => copy.sources.truncate(1),
        },
        Line::Inline { text, .. } => text.push_str(number),
        Line::Env(_, value) | Line::Arg(_, Some(value)) => value.push_str(number),
        Line::Arg(_, value @ None) => *value = Some(number.to_owned()),
        // Folders that are there: only the step behind it can tell.
        Line::Workdir(path) => *path = (*chance.pick(&["/in", "/etc", "/", "/w"])).to_owned(),
        Line::Label(text) | Line::Cmd(text) | Line::Shell(text) => text.push_str(number),
        Line::User(user) => *user = "9".to_owned(),
    }
}

fn mount(chance: &mut Chance, mounts: &mut Vec<Mount>) {
    let Some(last) = mounts.last_mut() else {
        return mounts.push(Mount::Tmpfs { target: "/t".to_owned(), size: 8192 });
    };
    match last {
        _ if chance.percent(30) => drop(mounts.pop()),
        Mount::Bind { write, .. } if chance.percent(50) => *write = !*write,
        // The name of a cache is in no key: what it holds is another matter.
        Mount::Cache { id: Some(id), .. } if chance.percent(50) => id.push('x'),
        Mount::Tmpfs { size, .. } if chance.percent(50) => *size *= 2,
        Mount::Bind { target, .. } | Mount::Cache { target, .. } | Mount::Tmpfs { target, .. } => {
            target.push('x');
        }
        Mount::Secret { id } => id.push('x'),
    }
}
