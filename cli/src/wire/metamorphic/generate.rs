//! Builds by chance: several stages, every kind of step, from a seed.

use std::collections::BTreeMap;

use super::case::{Case, Copy, Form, From, GIT, Image, Item, Items, Line, Mount, Run, Stage};

/// SplitMix64: small, and the same on every machine.
#[derive(Clone, Debug)]
pub(super) struct Chance(pub(super) u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).expect("small")).expect("small")
    }

    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// True in `percent` of a hundred cases.
    pub(super) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Sources in the context that are there at the beginning; those with wildcards need a folder to go to.
const PATHS: &[&str] = &[
    "a.txt",
    "b.txt",
    "run.sh",
    "link",
    "src",
    "src/main.c",
    "src/lib",
    "src/lib/x.h",
    "docs",
    "docs/",
    "./src/",
    "/src/lib",
    "src/to-main",
    "to-src",
    ".",
];
const GLOBS: &[&str] = &["*.txt", "src/*.c", "src/lib/*", "docs/*.md", "?.txt"];
const EXCLUDES: &[&str] = &["*.md", "**/*.md", "lib", "**/x.h", "*.txt"];
const PARENTS: &[&str] = &["src/main.c", "src/lib/x.h", "./src/./lib/x.h", "src/*.c", "docs/*.md"];
const MODES: &[&str] = &["644", "0755", "u=rwX,go=rX", "go-r"];
/// What the first line of every stage makes, so that others can copy it.
const MADE: &[&str] = &["/in", "/in/a.txt", "/in/b.txt", "/in/*.txt"];

fn folder() -> Item {
    Item::Folder(0o755)
}

pub(super) fn file(data: &str) -> Item {
    Item::File { data: data.to_owned(), mode: 0o644 }
}

fn context() -> Items {
    let link = |to: &str| Item::Link(to.to_owned());
    let script = Item::File { data: "#!/bin/sh\n".to_owned(), mode: 0o755 };
    let items = [
        ("a.txt", file("a")),
        ("b.txt", file("b")),
        ("run.sh", script),
        ("link", link("b.txt")),
        ("to-src", link("src")),
        ("src", folder()),
        ("src/main.c", file("main")),
        ("src/util.c", file("util")),
        ("src/readme.md", file("readme")),
        ("src/to-main", link("main.c")),
        ("src/lib", folder()),
        ("src/lib/x.h", file("x")),
        ("src/lib/notes.md", file("notes")),
        ("src/empty", folder()),
        ("docs", folder()),
        ("docs/one.md", file("one")),
        ("docs/two.md", file("two")),
        ("docs/build.log", file("log")),
        ("unused", folder()),
        ("unused/file", file("unused")),
    ];
    items.into_iter().map(|(path, item)| (path.to_owned(), item)).collect()
}

fn image() -> Image {
    let bottom = [
        ("etc", folder()),
        ("etc/passwd", file("root:x:0:0::/root:/bin/sh\napp:x:7:7::/:/bin/sh\n")),
        ("etc/group", file("root:x:0:\napp:x:7:\n")),
    ];
    let top = [("bin", folder()), ("bin/fake", file("fake"))];
    let items = |items: &[(&str, Item)]| -> Items {
        items.iter().map(|(path, item)| ((*path).to_owned(), item.clone())).collect()
    };
    Image {
        layers: vec![items(&bottom), items(&top)],
        packing: 0,
        manifest: 0,
        env: vec![("PATH".to_owned(), "/bin".to_owned())],
        label: "one".to_owned(),
    }
}

/// A build of one to three stages.
pub(super) fn generate(chance: &mut Chance) -> Case {
    let ignores: [&[&str]; 5] = [
        &[],
        &["*.log", "unused"],
        &["**/*.md", "!docs/one.md"],
        &["docs/*.log", "**/lib/notes.md"],
        &["docs", "!docs/two.md"],
    ];
    let mut case = Case {
        stages: Vec::new(),
        context: context(),
        ignore: chance.pick(&ignores).iter().map(|text| (*text).to_owned()).collect(),
        args: BTreeMap::from([
            ("A".to_owned(), "1".to_owned()),
            ("UNUSED".to_owned(), "1".to_owned()),
        ]),
        proxy: None,
        image: image(),
        platform: "linux/amd64",
        commit: 0,
        layout: 0,
    };
    let stages = 1 + chance.below(3);
    for number in 0..stages {
        let stage = stage(chance, number, number + 1 == stages);
        case.stages.push(stage);
    }
    case
}

fn stage(chance: &mut Chance, number: usize, last: bool) -> Stage {
    let from = match chance.below(6) {
        0 => From::Scratch,
        1 | 2 if number > 0 => From::Stage(chance.below(number)),
        _ => From::Image,
    };
    let sources = vec!["a.txt".to_owned(), "b.txt".to_owned()];
    let first = Copy { sources, dest: "/in/".to_owned(), ..Copy::default() };
    let mut lines = vec![Line::Copy(first)];
    for at in 0..1 + chance.below(5) {
        // Nothing else has this number, in any stage: destinations and names do not meet.
        lines.push(line(chance, from, number, number * 10 + at));
        if chance.percent(8) {
            // The second makes no layer: only the step behind it can tell.
            lines.extend(["/w", "/"].map(|path| Line::Workdir(path.to_owned())));
            lines.push(Line::Run(run(chance, number, number * 10 + at)));
        }
    }
    if last {
        // Most stages are used; what is not is not built, which is tried too.
        for other in 0..number {
            if chance.percent(85) {
                let sources = vec![(*chance.pick(MADE)).to_owned()];
                let dest = format!("/from-{other}/");
                lines.push(Line::Copy(Copy {
                    from: Some(other),
                    sources,
                    dest,
                    ..Copy::default()
                }));
            }
        }
    }
    Stage { from, lines }
}

fn line(chance: &mut Chance, from: From, stage: usize, number: usize) -> Line {
    let names = ["A", "B", "C"];
    match chance.below(16) {
        0..=4 => Line::Run(run(chance, stage, number)),
        5..=9 => Line::Copy(copy(chance, from, stage, number)),
        10 => Line::Inline {
            name: "EOF".to_owned(),
            text: format!("inline {number} ${{A}}"),
            dest: format!("/inline-{number}"),
        },
        11 => Line::Env(
            (*chance.pick(&["B", "C"])).to_owned(),
            chance.pick(&["x", "${A}", "y-${B}"]).to_string(),
        ),
        12 => {
            let name = (*chance.pick(&names)).to_owned();
            Line::Arg(name, chance.percent(50).then(|| "default".to_owned()))
        }
        13 => match chance.below(6) {
            0 => Line::Label("l".to_owned()),
            1 => Line::Cmd("c".to_owned()),
            2 => Line::Shell("/bin/other".to_owned()),
            _ => Line::User((*chance.pick(&["7", "0", "7:8"])).to_owned()),
        },
        _ => Line::Workdir(chance.pick(&["/w", "sub", "/w/${A}", "/", "/in", "/etc"]).to_string()),
    }
}

fn run(chance: &mut Chance, stage: usize, number: usize) -> Run {
    let command = match chance.below(8) {
        0..=3 => format!("sees n{number}"),
        4 | 5 => format!("const n{number}"),
        6 => format!("part n{number} in"),
        _ => "rm in/a.txt".to_owned(),
    };
    let mut mounts = Vec::new();
    for at in 0..chance.below(3) {
        let target = format!("/m{at}");
        mounts.push(match chance.below(7) {
            0 | 1 => {
                let source = chance.pick(&["src", "a.txt", "/", "docs"]).to_string();
                Mount::Bind { from: None, source, target, write: chance.percent(30) }
            }
            2 | 3 if stage > 0 => {
                let source = chance.pick(&["/", "/in", "/in/b.txt"]).to_string();
                Mount::Bind { from: Some(chance.below(stage)), source, target, write: false }
            }
            4 => Mount::Cache { id: chance.percent(50).then(|| "named".to_owned()), target },
            5 => Mount::Tmpfs { target, size: 4096 },
            _ => Mount::Secret { id: format!("secret{at}") },
        });
    }
    let form = *chance.pick(&[Form::Shell, Form::Shell, Form::Exec, Form::Heredoc, Form::Script]);
    Run { command, form, mounts, network_none: chance.percent(10) }
}

fn copy(chance: &mut Chance, base: From, stage: usize, number: usize) -> Copy {
    let mut copy = Copy { dest: format!("/d{number}/"), ..Copy::default() };
    if stage > 0 && chance.percent(35) {
        copy.from = Some(chance.below(stage));
        copy.sources.push((*chance.pick(MADE)).to_owned());
    } else {
        let count = 1 + chance.below(2);
        copy.parents = chance.percent(12);
        copy.add = !copy.parents && chance.percent(20);
        for _ in 0..count {
            let from = if copy.parents {
                PARENTS
            } else if chance.percent(15) {
                GLOBS
            } else {
                PATHS
            };
            let source = chance.pick(from).to_string();
            if !copy.sources.contains(&source) {
                copy.sources.push(source);
            }
        }
        if copy.add && chance.percent(30) {
            copy.sources.push(GIT.to_owned());
        }
        if chance.percent(15) {
            copy.exclude.push((*chance.pick(EXCLUDES)).to_owned());
        }
    }
    if chance.percent(20) {
        copy.dest = format!("deep-${{A}}/{number}/");
    }
    copy.link = chance.percent(25);
    if chance.percent(25) {
        let named = !copy.link && matches!(base, From::Image);
        copy.chown = Some(if named { "app" } else { "7:8" }.to_owned());
    }
    if chance.percent(25) {
        copy.chmod = Some((*chance.pick(MODES)).to_owned());
    }
    copy
}
