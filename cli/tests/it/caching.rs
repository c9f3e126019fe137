//! What runs after a change, with real contexts and real RUN. Each step is listed with the changes that it may see; any
//! set of changes may be made at once. A step runs when it never ran with those of them that it sees. The cache as a
//! whole has the same in far larger number in `cli/src/wire/metamorphic.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::env::{Said, World, files, text, tool};

/// Steps, by the destination of a COPY or the word that a RUN says first, and the changes that each may see.
const STEPS: &[(&str, &[&str])] = &[
    ("/c-one/", &["a"]),
    ("one-a", &["a"]),
    ("one-arg", &["a", "argument"]),
    ("/c-two/", &["src", "src mode", "src new"]),
    ("two-bind", &["src", "src mode", "src new", "b"]),
    ("two-hidden", &["src", "src mode", "src new", "b"]),
    ("two-const", &["src", "src mode", "src new", "b"]),
    ("/c-three/", &["a"]),
    ("/c-four/", &["a"]),
    ("three-run", &["a"]),
    ("three-env", &["a", "env"]),
];

/// Changes that some step may see, then those that none may.
const CHANGES: &[&str] = &[
    "a",
    "argument",
    "src",
    "src mode",
    "src new",
    "b",
    "env",
    "unused argument",
    "excluded",
    "ignored",
    "label",
    "layout",
    "secret",
    "proxy",
    "touch",
    "owner",
    "move",
];

fn dockerfile(on: &BTreeSet<&str>) -> String {
    let pick = |change: &str, is: &'static str, is_not: &'static str| {
        if on.contains(change) { is } else { is_not }
    };
    let (layout, env) = (pick("layout", "# another\n\n", "# one\n"), pick("env", "new", "old"));
    let label = pick("label", "new", "old");
    format!(
        "{layout}FROM busybox AS one
COPY a.txt /c-one/
RUN echo one-a; cat /c-one/a.txt > /out
ARG USED
RUN echo one-arg $USED > /arg
{layout}FROM busybox AS two
COPY --exclude=*.md src /c-two/
RUN --mount=type=bind,source=b.txt,target=/b echo two-bind; cat /b > /b-copy
RUN --mount=type=secret,id=s --mount=type=cache,target=/cache \
    echo two-hidden; echo x >> /cache/f; cat /run/secrets/s > /dev/null
RUN --mount=type=bind,source=b.txt,target=/b echo two-const; echo const > /const
FROM busybox
LABEL label={label}
COPY --from=one /out /c-three/
COPY --from=two /const /c-four/
RUN echo three-run; cat /c-three/* /c-four/* > /all
ENV MODE={env}
RUN echo three-env $MODE > /env
"
    )
}

/// Makes the context as it is with some changes, and builds it.
fn build(world: &World, on: &BTreeSet<&str>) -> Said {
    let pick = |change: &str| if on.contains(change) { "new" } else { "old" };
    let _first = fs::remove_dir_all(world.path("ctx"));
    world
        .file("Dockerfile", &dockerfile(on))
        .file(".dockerignore", "*.log\n")
        .file("a.txt", pick("a"))
        .file("b.txt", pick("b"))
        .file("src/main.c", pick("src"))
        .file("src/run.sh", "#!/bin/sh\n")
        .file("src/readme.md", pick("excluded"))
        .file("build.log", pick("ignored"));
    if on.contains("src new") {
        world.file("src/new.c", "new");
    }
    let mode = if on.contains("src mode") { 0o700 } else { 0o755 };
    fs::set_permissions(world.path("ctx/src/run.sh"), PermissionsExt::from_mode(mode)).expect("ok");
    for path in files(&world.path("ctx")) {
        if on.contains("owner") {
            std::os::unix::fs::chown(&path, Some(1234), Some(1234)).expect("chown");
        }
        if on.contains("touch") {
            let file = fs::File::open(&path).expect("readable");
            file.set_modified(std::time::UNIX_EPOCH).expect("touched");
        }
    }
    fs::write(world.path("secret"), pick("secret")).expect("written");
    let mut command = world.command();
    command.args(["build", "--progress", "plain", "--secret", "id=s,src=secret"]);
    command.arg(format!("--build-arg=USED={}", pick("argument")));
    command.arg(format!("--build-arg=UNUSED={}", pick("unused argument")));
    command.arg(format!("--build-arg=HTTP_PROXY=http://{}", pick("proxy")));
    let folder = if on.contains("move") { "elsewhere" } else { "ctx" };
    if folder != "ctx" {
        let _last = fs::remove_dir_all(world.path(folder));
        fs::rename(world.path("ctx"), world.path(folder)).expect("moved");
        fs::set_permissions(world.path(folder), PermissionsExt::from_mode(0o700)).expect("chmod");
    }
    crate::env::said(&command.arg(folder).output().expect("kiln starts")).ok()
}

/// The steps that ran, by name.
fn ran(said: &Said) -> BTreeSet<String> {
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    let mut ran = BTreeSet::new();
    for line in said.err.lines() {
        let Some((number, rest)) = line.split_once(' ') else { continue };
        if let Some((_, instruction)) = rest.split_once("] ").filter(|_| rest.starts_with('[')) {
            let name = match instruction.split_once("echo ") {
                Some((_, words)) => words.split([' ', ';']).next().unwrap_or_default(),
                None => instruction.rsplit(' ').next().unwrap_or_default(),
            };
            names.insert(number, name.to_owned());
        } else if rest.starts_with("DONE ")
            && let Some(name) = names.get(number)
            && STEPS.iter().any(|(step, _)| step == name)
        {
            ran.insert(name.clone());
        }
    }
    ran
}

#[test]
fn changes_run_what_may_see_them() {
    let world = World::new();
    world.busybox();
    let mut known: BTreeSet<(&str, Vec<&str>)> = BTreeSet::new();
    let mut random = 7_u64;
    let mut sets: Vec<BTreeSet<&str>> = vec![BTreeSet::new()];
    sets.extend(CHANGES.iter().map(|change| BTreeSet::from([*change])));
    for _ in 0..60 {
        let mut set = BTreeSet::new();
        for _ in 0..3 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = usize::try_from(random >> 33).expect("fits") % CHANGES.len();
            set.insert(CHANGES[at]);
        }
        sets.push(set);
    }
    for (number, on) in sets.iter().enumerate() {
        let expected: BTreeSet<String> = STEPS
            .iter()
            .filter(|(step, sees)| {
                let seen = sees.iter().copied().filter(|change| on.contains(change)).collect();
                known.insert((*step, seen))
            })
            .map(|(step, _)| (*step).to_owned())
            .collect();
        let said = build(&world, on);
        assert_eq!(ran(&said), expected, "build {number} with {on:?}\n{}", said.err);
    }
}

/// `FROM base`, a step that reads it, and one that does not.
fn app(world: &World) -> Said {
    world.file(
        "Dockerfile",
        "FROM base\nCOPY a.txt /c-one/\nRUN echo one-a; cat /c-one/a.txt /root/f > /all\n",
    );
    world.file("a.txt", "a");
    world.build(&["--output", "type=local,dest=out", "-t", "app"]).ok()
}

#[test]
fn a_base_that_was_built_anew_with_the_same_files_runs_nothing() {
    let world = World::new();
    world.busybox().file("base/Dockerfile", "FROM busybox\nRUN echo 1 > /root/f\n");
    let base = |args: &[&str]| {
        let mut all = vec!["build", "-t", "base"];
        all.extend_from_slice(args);
        all.push("ctx/base");
        world.kiln(&all).ok()
    };
    base(&[]);
    assert_eq!(ran(&app(&world)).len(), 2);
    base(&["--no-cache"]);
    assert_eq!(ran(&app(&world)).len(), 0);
    world.file("base/Dockerfile", "FROM busybox\nRUN echo 2 > /root/f\n");
    base(&[]);
    assert_eq!(ran(&app(&world)).len(), 2);
    assert_eq!(fs::read_to_string(world.path("out/all")).expect("there"), "a2\n");
}

#[test]
fn a_base_that_was_packed_anew_runs_nothing_and_is_exported_as_it_is() {
    let world = World::new();
    world.busybox();
    fs::write(world.path("busybox/root/f"), "f").expect("written");
    let import = |time: &str| {
        let (folder, archive) = (text(&world.path("busybox")), text(&world.path("base.tar")));
        let time = format!("--mtime=@{time}");
        tool("tar", &["-C", &folder, &time, "--sort=name", "-cf", &archive, "."]);
        world.kiln(&["import", "base.tar", "base"]).ok();
        let digest = tool("sha256sum", &[&archive]);
        format!("sha256:{}", digest.split(' ').next().expect("a digest"))
    };
    let first = import("1000");
    assert_eq!(ran(&app(&world)).len(), 2);
    let second = import("2000");
    assert_ne!(first, second, "another archive");
    assert_eq!(ran(&app(&world)).len(), 0, "the same files");
    let config = world.kiln(&["inspect", "app"]).ok().out;
    assert!(config.contains(&second) && !config.contains(&first), "layers are mixed:\n{config}");
    assert_eq!(fs::read_to_string(world.path("out/all")).expect("there"), "af");
    fs::write(world.path("busybox/root/f"), "other").expect("written");
    import("2000");
    assert_eq!(ran(&app(&world)).len(), 2);
    assert_eq!(fs::read_to_string(world.path("out/all")).expect("there"), "aother");
}
