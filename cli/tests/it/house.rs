//! The rules of the house (ARCHITECTURE.md, "Rules that a test keeps"), checked on the sources
//! themselves: dependency arrows, unsafe code, headers, sizes, names, forbidden words.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which crates of ours a crate may use (DESIGN.md section 1).
const ARROWS: &[(&str, &[&str])] = &[
    ("parser", &[]),
    ("cache", &[]),
    ("solver", &["kiln-parser", "kiln-cache"]),
    ("executor", &["kiln-cache"]),
    ("image", &["kiln-cache"]),
    ("cli", &["kiln-parser", "kiln-cache", "kiln-solver", "kiln-executor", "kiln-image"]),
];

/// Lines of a file without its tests.
const FILE_LINES_MAX: usize = 800;

/// Packages in Cargo.lock: every dependency has to be worth it.
const PACKAGES_MAX: usize = 260;

const FORBIDDEN_NAMES: &[&str] = &["util", "utils", "helpers", "common", "misc"];

/// Spelled in two halves so that this file does not break its own rule.
const FORBIDDEN_WORDS: &[(&str, &str)] =
    &[("FIX", "ME"), ("dbg", "!("), ("todo", "!("), ("unimplemented", "!("), ("#[igno", "re")];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("cli/ is in the repository").to_owned()
}

struct SourceFile {
    name: String,
    text: String,
}

fn sources() -> Vec<SourceFile> {
    let root = repository();
    let mut files = Vec::new();
    for (krate, _) in ARROWS {
        for part in ["src", "tests", "benches", "examples"] {
            collect(&root, &root.join(krate).join(part), &mut files);
        }
    }
    assert!(
        files.len() > 30,
        "only {} sources found: the test looks in the wrong place",
        files.len()
    );
    files
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<SourceFile>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("readable folder").path();
        if path.is_dir() {
            collect(root, &path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name = path.strip_prefix(root).expect("below the repository").display().to_string();
            let text = fs::read_to_string(&path).expect("UTF-8 source");
            files.push(SourceFile { name, text });
        }
    }
}

fn report(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

#[test]
fn arrows_point_down() {
    let root = repository();
    let mut found = Vec::new();
    for (krate, allowed) in ARROWS {
        let manifest = fs::read_to_string(root.join(krate).join("Cargo.toml")).expect("manifest");
        for line in manifest.lines().filter(|line| line.starts_with("kiln-")) {
            let used = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if !allowed.contains(&used) {
                found.push(format!("{krate}/Cargo.toml uses {used}"));
            }
        }
    }
    report("a crate may use only what DESIGN.md section 1 draws", &found);
}

#[test]
fn unsafe_code_is_behind_one_door() {
    let mut found = Vec::new();
    for (krate, _) in ARROWS.iter().filter(|(krate, _)| *krate != "executor") {
        let entry =
            if *krate == "cli" { "cli/src/main.rs" } else { &format!("{krate}/src/lib.rs") };
        let text = fs::read_to_string(repository().join(entry)).expect("entry file");
        if !text.contains("#![forbid(unsafe_code)]") {
            found.push(format!("{entry} lacks #![forbid(unsafe_code)]"));
        }
    }
    for file in sources().iter().filter(|file| file.name.starts_with("executor/src/")) {
        let door = file.name == "executor/src/sys.rs" || file.name.starts_with("executor/src/sys/");
        let word = concat!("unsafe", " {");
        if !door && file.text.contains(word) {
            found.push(file.name.clone());
        }
    }
    report("unsafe code is in executor/src/sys/ alone", &found);
}

#[test]
fn every_file_says_what_it_is_for() {
    let found: Vec<_> = sources()
        .into_iter()
        .filter(|file| !file.text.trim_start().starts_with("//!"))
        .map(|file| file.name)
        .collect();
    report("a source file starts with a //! header", &found);
}

#[test]
fn files_stay_readable() {
    let mut found = Vec::new();
    for file in sources().iter().filter(|file| file.name.contains("/src/")) {
        let body = file.text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let lines = body.lines().count();
        if lines > FILE_LINES_MAX {
            found.push(format!("{} has {lines} lines, {FILE_LINES_MAX} are enough", file.name));
        }
    }
    report("one concept a file, a few hundred lines", &found);
}

#[test]
fn names_say_something() {
    let found: Vec<_> = sources()
        .into_iter()
        .filter(|file| {
            let stem =
                Path::new(&file.name).file_stem().and_then(|s| s.to_str()).unwrap_or_default();
            FORBIDDEN_NAMES.contains(&stem) || stem == "mod"
        })
        .map(|file| file.name)
        .collect();
    report("a file is named after its concept", &found);
}

#[test]
fn no_loose_ends() {
    let mut found = Vec::new();
    for file in sources() {
        for (number, line) in file.text.lines().enumerate() {
            for (first, second) in FORBIDDEN_WORDS {
                if line.contains(&format!("{first}{second}")) {
                    found.push(format!("{}:{}: {first}{second}", file.name, number + 1));
                }
            }
            let lifts = concat!("#[all", "ow(");
            if line.trim_start().starts_with(lifts) && !line.contains("reason") {
                found.push(format!(
                    "{}:{}: a lint is lifted without a reason",
                    file.name,
                    number + 1
                ));
            }
        }
    }
    report("nothing unfinished is committed", &found);
}

#[test]
fn the_map_is_true() {
    let root = repository();
    let mut found = Vec::new();
    for page in ["ARCHITECTURE.md", "README.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root.join(page)).expect(page);
        for word in text.split('`').skip(1).step_by(2) {
            let is_path = word.contains('/')
                && ARROWS.iter().any(|(krate, _)| word.starts_with(&format!("{krate}/")))
                && !word.contains(['*', '<', ' ', '{']);
            if is_path && !root.join(word).exists() {
                found.push(format!("{page} names `{word}`, which is not there"));
            }
        }
    }
    report("a path in the documents exists", &found);
}

#[test]
fn dependencies_stay_few() {
    let lock = fs::read_to_string(repository().join("Cargo.lock")).expect("Cargo.lock");
    let packages = lock.matches("[[package]]").count();
    assert!(
        packages <= PACKAGES_MAX,
        "{packages} packages in Cargo.lock, the ceiling is {PACKAGES_MAX}"
    );
}

#[test]
fn versions_stand_in_one_place() {
    let root = repository();
    let mut found = BTreeMap::new();
    for (krate, _) in ARROWS {
        let manifest = fs::read_to_string(root.join(krate).join("Cargo.toml")).expect("manifest");
        let dependencies = manifest.split("dependencies]").skip(1).collect::<String>();
        for line in dependencies.lines().filter(|line| line.contains('=')) {
            if !line.contains("workspace = true") {
                found.insert(format!("{krate}/Cargo.toml: {line}"), ());
            }
        }
    }
    report("versions are in the workspace's Cargo.toml", &found.into_keys().collect::<Vec<_>>());
}
