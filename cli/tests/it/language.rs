//! Options that touch the language, and platforms.

use std::fs;

use serde_json::Value;

use crate::env::{World, text, tool};

/// A JSON document of an OCI layout: `index.json`, or a blob by digest.
fn document(world: &World, name: &str) -> Value {
    let path = match name.split_once(':') {
        Some((algorithm, hex)) => format!("layout/blobs/{algorithm}/{hex}"),
        None => format!("layout/{name}"),
    };
    serde_json::from_str(&fs::read_to_string(world.path(&path)).expect("readable")).expect("JSON")
}

fn digest(descriptor: &Value) -> String {
    descriptor["digest"].as_str().expect("a digest").to_owned()
}

const LAYOUT: &str = "type=oci,dest=layout,tar=false";

#[test]
fn annotations_stand_at_four_levels() {
    let world = World::new();
    world.file("Dockerfile", "FROM scratch\nCOPY a /\n").file("a", "x");
    let output = format!("{LAYOUT},annotation.from.output=o");
    let mut args = vec!["--platform", "linux/amd64,linux/arm64", "-o", &output];
    for annotation in [
        "plain=p",
        "manifest[linux/arm64]:arm=a",
        "manifest-descriptor:md=1",
        "index:i=2",
        "index-descriptor:id=3",
    ] {
        args.extend(["--annotation", annotation]);
    }
    world.build(&args).ok();
    let top = &document(&world, "index.json")["manifests"][0];
    assert_eq!(top["annotations"]["id"], "3");
    let index = document(&world, &digest(top));
    assert_eq!(index["annotations"]["i"], "2");
    let manifests = index["manifests"].as_array().expect("a list");
    assert_eq!(manifests.len(), 2);
    for descriptor in manifests {
        assert_eq!(descriptor["annotations"]["md"], "1");
        let manifest = document(&world, &digest(descriptor));
        assert_eq!(manifest["annotations"]["plain"], "p");
        assert_eq!(manifest["annotations"]["from.output"], "o");
        let arm = descriptor["platform"]["architecture"] == "arm64";
        assert_eq!(manifest["annotations"]["arm"] == "a", arm);
    }
    let alone = world.build(&["-o", LAYOUT, "--annotation", "index:a=b"]);
    assert!(alone.err.contains("index annotations not supported"), "{}", alone.err);
    let other = world.build(&["-o", LAYOUT, "--annotation", "manifest[linux/s390x]:a=b"]);
    assert!(other.err.contains("no platform linux/s390x found"), "{}", other.err);
}

#[test]
fn one_platform_gets_an_index_where_asked() {
    let world = World::new();
    world.file("Dockerfile", "FROM scratch\nCOPY a /\n").file("a", "x");
    world.build(&["-o", LAYOUT, "--build-arg", "BUILDKIT_MULTI_PLATFORM=1"]).ok();
    let top = &document(&world, "index.json")["manifests"][0];
    assert_eq!(document(&world, &digest(top))["manifests"].as_array().map(Vec::len), Some(1));
}

/// What runs on the builder's platform runs once for all targets.
#[test]
fn native_steps_are_shared_by_platforms() {
    let world = World::new();
    world.busybox().file(
        "Dockerfile",
        "FROM --platform=$BUILDPLATFORM busybox AS build\nRUN echo made > /made\n\
         FROM scratch\nARG TARGETARCH\nCOPY --from=build /made /made-$TARGETARCH\n",
    );
    let built =
        world.build(&["--platform", "linux/amd64,linux/arm64,linux/s390x", "-o", "out"]).ok();
    assert_eq!(built.err.matches("RUN echo made").count(), 1, "{}", built.err);
    for arch in ["amd64", "arm64", "s390x"] {
        let made = world.path(&format!("out/linux_{arch}/made-{arch}"));
        assert_eq!(fs::read_to_string(made).expect("made"), "made\n");
    }
}

#[test]
fn hosts_and_arguments_reach_steps() {
    let world = World::new();
    world.busybox().file(
        "Dockerfile",
        "FROM busybox\nARG FROM_CALLER\nARG ABSENT\nARG BUILDKIT_SBOM_SCAN_STAGE=x\n\
         RUN grep -c gateway.test /etc/hosts && echo \"[$FROM_CALLER] [${ABSENT-absent}] [$BUILDKIT_SBOM_SCAN_STAGE]\"\n",
    );
    let mut command = world.command();
    command.env("FROM_CALLER", "called");
    // Of an option that is given twice the last value counts, as with docker.
    command.args([
        "build",
        "--progress=quiet",
        "--progress",
        "plain",
        "--add-host",
        "gateway.test=host-gateway",
    ]);
    command.args(["--build-arg", "FROM_CALLER", "--build-arg", "ABSENT", "ctx"]);
    let built = crate::env::said(&command.output().expect("starts")).ok();
    assert!(built.err.contains("[called] [absent] []"), "{}", built.err);
}

#[test]
fn other_languages_are_told() {
    let world = World::new();
    world
        .file("a", "x")
        .file("Dockerfile", "# syntax=docker/dockerfile:1.99\nFROM scratch\nCOPY a /\n");
    let noted = world.build(&[]).ok();
    assert!(noted.err.contains("asks for a newer language"), "{}", noted.err);
    world.file("Dockerfile", "# syntax=example/frontend:1\nFROM scratch\nCOPY a /\n");
    let refused = world.build(&[]);
    assert!(refused.err.contains("asks for another frontend"), "{}", refused.err);
    world.build(&["--build-arg", "BUILDKIT_SYNTAX=dockerfile.v0"]).ok();
}

#[test]
fn stages_of_the_caller_are_run_anew() {
    let world = World::new();
    world.busybox().file(
        "Dockerfile",
        "FROM busybox AS One\nRUN echo 1 > /1\nFROM busybox AS two\nRUN echo 2 > /2\nCOPY --from=one /1 /\n",
    );
    world.build(&[]).ok();
    let again = world.build(&["--no-cache-filter", "ONE"]).ok();
    let line = |name: &str| {
        let mut lines = again.err.lines().skip_while(|line| !line.contains(name));
        lines.nth(1).unwrap_or_default().to_owned()
    };
    assert!(line("RUN echo 2").contains("CACHED"), "{}", again.err);
    assert!(!line("RUN echo 1").contains("CACHED"), "{}", again.err);
}

#[test]
fn steps_run_below_a_control_group() {
    let world = World::new();
    world.busybox().file("Dockerfile", "FROM busybox\nRUN cat /proc/self/cgroup && sleep 0\n");
    let built = world.build(&["--cgroup-parent", "/kiln-test"]);
    if built.code != 0 {
        // Nobody may make groups here (a container without them): the error says so.
        assert!(built.err.contains("control group"), "{}", built.err);
        return;
    }
    // The step's own group is the root of its namespace.
    assert!(built.err.lines().any(|line| line.ends_with(":/")), "{}", built.err);
    let left = tool("find", &["/sys/fs/cgroup", "-path", "*/kiln-test/kiln-*", "-maxdepth", "4"]);
    assert_eq!(left, "", "groups are removed");
    let wrong = world.build(&["--cgroup-parent", "a:b:c"]);
    assert!(wrong.err.contains("invalid --cgroup-parent"), "{}", wrong.err);
    for hierarchy in fs::read_dir("/sys/fs/cgroup").expect("mounted").flatten() {
        let _not_there = fs::remove_dir(hierarchy.path().join("kiln-test"));
    }
    let _not_there = fs::remove_dir("/sys/fs/cgroup/kiln-test");
}

/// A stage of the file, an image for one platform alone, and a layout, by `--build-context`.
#[test]
fn contexts_have_names() {
    let world = World::new();
    world.file("a", "x").file(
        "Dockerfile",
        "FROM scratch AS other\nCOPY a /from-stage\nFROM base\nCOPY --from=pick / /\n",
    );
    world
        .build(&[
            "--build-context",
            "base=docker-image://scratch",
            "--build-context",
            "pick=target:other",
            "-o",
            "out",
        ])
        .ok();
    assert_eq!(fs::read_to_string(world.path("out/from-stage")).expect("made"), "x");
    world.file("b", "y");
    let folder = text(&world.path("ctx"));
    let special = format!("pick::linux/arm64={folder}");
    let plain = "pick=docker-image://scratch".to_owned();
    let args = [
        "--build-context",
        "base=docker-image://scratch",
        "--build-context",
        &special,
        "--build-context",
        &plain,
    ];
    world.build(&[&args[..], &["--platform", "linux/arm64", "-o", "out2"]].concat()).ok();
    assert!(world.path("out2/b").exists(), "the context of the platform comes first");
}
