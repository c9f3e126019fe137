//! `kiln build --call`, `--check` and `kiln lint`: answers about Dockerfiles, as the user reads them.
//! What they should be stands in testdata/call; UPDATE_EXPECT=1 writes it anew.

use std::fs;
use std::path::{Path, PathBuf};

use crate::env::{Said, World};

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/call").join(name)
}

/// Holds a text against a file.
#[track_caller]
fn is_as_before(name: &str, text: &str) {
    let path = testdata(name);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, text).expect("written");
    }
    let expect = fs::read_to_string(&path).expect("UPDATE_EXPECT=1 makes it");
    assert_eq!(text, expect, "{name}");
}

/// A world with the large file, and with its images in the store.
fn large() -> World {
    let world = World::new();
    world.busybox();
    let text = fs::read_to_string(testdata("Dockerfile")).expect("readable");
    assert!(text.lines().count() >= 200, "a file of some size");
    world.file("Dockerfile", &text);
    for image in [
        "golang:1.22-bookworm",
        "node:20-bookworm-slim",
        "debian:bookworm-slim",
        "registry.example/team/service:stable",
    ] {
        world.kiln(&["tag", "busybox", image]).ok();
    }
    world
}

fn call(world: &World, method: &str, args: &[&str]) -> Said {
    let mut all = vec!["build", "--call", method];
    all.extend_from_slice(args);
    all.push("ctx");
    world.kiln(&all)
}

#[test]
fn targets_of_a_large_file() {
    let world = large();
    is_as_before("targets.txt", &call(&world, "targets", &[]).ok().out);
    is_as_before("targets.json", &call(&world, "targets,format=json", &[]).ok().out);
}

#[test]
fn outlines_of_a_large_file() {
    let world = large();
    let release = ["--build-arg", "COMMIT=abc", "--build-arg", "GO_VERSION=1.22"];
    is_as_before("outline-release.txt", &call(&world, "outline", &release).ok().out);
    is_as_before("outline-release.json", &call(&world, "outline,format=json", &release).ok().out);
    is_as_before("outline-lint.txt", &call(&world, "outline", &["--target", "lint"]).ok().out);
    is_as_before("outline-pages.txt", &call(&world, "outline", &["--target", "pages"]).ok().out);
}

#[test]
fn checks_of_a_large_file() {
    let world = large();
    let found = call(&world, "check", &[]);
    assert_eq!(found.code, 1);
    is_as_before("check.txt", &found.out);
    assert_eq!(call(&world, "check,ignorestatus=true", &[]).code, 0);
    assert_eq!(
        world.kiln(&["build", "--check", "--target", "pages", "ctx"]).ok().out,
        "Check complete, no warnings found.\n"
    );
    let sarif = call(&world, "check,format=sarif", &[]).out;
    let document: serde_json::Value = serde_json::from_str(&sarif).expect("JSON");
    assert_eq!(document["version"], "2.1.0");
    let result = &document["runs"][0]["results"][0];
    assert_eq!(result["ruleId"], "SecretsUsedInArgOrEnv");
    assert_eq!(result["locations"][0]["physicalLocation"]["region"]["startLine"], 188);
}

#[test]
fn many_files_are_linted() {
    let world = World::new();
    world.file("a/Dockerfile", "FROM x AS y\nCOPY b /\n").file("a/.dockerignore", "b\n");
    world.file("b/Dockerfile", "FROM x\nRNU y\n").file("c/Dockerfile", "FROM x\nRUN y\n");
    let found = world.kiln(&["lint", "ctx/a/Dockerfile", "ctx/b/Dockerfile", "ctx/c/Dockerfile"]);
    assert_eq!((found.code, found.err.as_str()), (1, ""));
    for expect in
        ["CopyIgnoredFile", "ctx/a/Dockerfile:2", "unknown instruction: RNU", "ctx/b/Dockerfile:2"]
    {
        assert!(found.out.contains(expect), "{expect}: {}", found.out);
    }
    assert_eq!(world.kiln(&["lint", "ctx/c/Dockerfile"]).code, 0);
    let json = world.kiln(&["lint", "--format=json", "ctx/a/Dockerfile"]).out;
    let document: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(document["warnings"][0]["ruleName"], "CopyIgnoredFile");
    assert_eq!(document["warnings"][0]["location"]["ranges"][0]["start"]["line"], 2);
}

#[test]
fn directives_make_warnings_errors() {
    let world = World::new();
    world.busybox().file("Dockerfile", "# check=error=true\nFROM busybox\nMAINTAINER me\n");
    let failed = world.build(&[]);
    assert_eq!(failed.code, 1);
    assert!(failed.err.contains("lint violation found for rules: MaintainerDeprecated"));
    world.build(&["--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=all"]).ok();
}
