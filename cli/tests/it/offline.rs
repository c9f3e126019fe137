//! `--offline`: what is in the store is used, what is not is named, and nobody is asked.

use std::sync::atomic::Ordering;

use crate::env::{World, said};
use crate::registry::Registry;
use crate::remote::serve_counted;

#[test]
fn a_file_that_was_fetched_is_there() {
    let world = World::new();
    std::fs::write(world.path("one"), "1").expect("written");
    let (server, requests) = serve_counted(&world.path(""));
    world.busybox().file("Dockerfile", &format!("FROM busybox\nADD {server}/one /one\n"));
    let offline = |args: &[&str]| {
        let mut all = vec!["--offline", "build", "--progress=plain"];
        all.extend_from_slice(args);
        world.kiln(&[all.as_slice(), &["ctx"]].concat())
    };
    let missing = offline(&[]);
    assert_eq!(requests.load(Ordering::SeqCst), 0);
    assert_ne!(missing.code, 0);
    let expect = format!("`{server}/one` is not in the store, and nothing is fetched offline");
    assert!(missing.err.contains(&expect), "{}", missing.err);

    world.build(&[]).ok();
    let asked = requests.load(Ordering::SeqCst);
    assert!(asked > 0);
    offline(&["-o", "out"]).ok();
    assert_eq!(std::fs::read_to_string(world.path("out/one")).expect("there"), "1");
    assert_eq!(requests.load(Ordering::SeqCst), asked);

    for option in ["--pull", "--push"] {
        let refused = offline(&[option, "-t", "x"]);
        assert_eq!(refused.code, 2, "{}", refused.err);
        assert!(refused.err.contains("contradicts --offline"), "{}", refused.err);
    }
}

#[test]
fn images_are_named_that_are_missing() {
    let world = World::new();
    world.file("Dockerfile", "FROM registry.invalid/none:1\n");
    let missing = world.command().env("KILN_OFFLINE", "1").args(["build", "ctx"]).output();
    let missing = crate::env::said(&missing.expect("kiln starts"));
    assert_eq!(missing.code, 3, "{}", missing.err);
    let expect = "image `registry.invalid/none:1` is not in the store";
    assert!(missing.err.contains(expect), "{}", missing.err);
}

#[test]
fn a_repository_is_what_it_was() {
    let world = World::new();
    let url = format!("{}#main:sub", crate::remote::repository(&world));
    let missing = world.kiln(&["--offline", "build", &url]);
    assert!(missing.err.contains("nothing is fetched offline"), "{}", missing.err);
    world.kiln(&["build", &url]).ok();
    std::fs::remove_dir_all(world.path("r.git")).expect("removed");
    let again = world.kiln(&["--offline", "build", "--progress=plain", &url]).ok();
    assert!(again.err.contains("CACHED") && !again.err.contains("DONE"), "{}", again.err);
}

#[test]
fn steps_have_no_network() {
    let world = World::new();
    world.busybox().file("Dockerfile", "FROM busybox\nRUN ls /sys/class/net\n");
    let built = world.kiln(&["--offline", "build", "--progress=plain", "ctx"]).ok();
    let interfaces: Vec<&str> = built
        .err
        .lines()
        .filter_map(|line| line.strip_prefix("#1 0.")?.split_once(' '))
        .map(|(_, name)| name)
        .collect();
    assert_eq!(interfaces, ["lo"], "{}", built.err);
}

/// F64: an image that was pulled by name or digest is there, and no address is asked, with or without `--offline`.
#[test]
fn f64_images_that_were_pulled_are_there() {
    let world = World::new();
    let registry = Registry::start(&world);
    let name = format!("{}/base:1", registry.address);
    let config = format!("[registry.\"{}\"]\nhttp = true\n", registry.address);
    std::fs::write(world.path("config.toml"), config).expect("written");
    let run = |args: &[&str]| {
        let mut command = world.command();
        command.env("KILN_CONFIG", world.path("config.toml")).args(args);
        said(&command.output().expect("kiln starts"))
    };
    world.busybox();
    run(&["tag", "busybox", &name]).ok();
    run(&["push", &name]).ok();
    std::fs::remove_dir_all(world.path("store")).expect("removed");
    let pulled = run(&["pull", &name]).ok();
    let digest = pulled.out.split_whitespace().find(|word| word.starts_with("sha256:"));
    let digest = digest.expect("the digest").to_owned();
    world.file("one", &format!("FROM {name}\nRUN echo 1\n"));
    world.file("two", &format!("FROM {name}@{digest}\nRUN echo 1\n"));
    for file in ["ctx/one", "ctx/two"] {
        run(&["build", "-f", file, "ctx"]).ok();
    }
    // Whoever asks now is refused.
    drop(registry);
    for file in ["ctx/one", "ctx/two"] {
        for offline in [&["--offline"][..], &[]] {
            let args = ["build", "--progress=plain", "-f", file, "-o", "out", "ctx"];
            let built = run(&[offline, &args].concat()).ok();
            assert!(built.err.contains("CACHED"), "{file}: {}", built.err);
        }
    }
    // What is not there is named.
    let other = format!("sha256:{}", "4".repeat(64));
    world.file("three", &format!("FROM {name}@{other}\n"));
    let missing = run(&["--offline", "build", "-f", "ctx/three", "ctx"]);
    assert_eq!(missing.code, 3, "{}", missing.err);
    assert!(missing.err.contains("is not in the store"), "{}", missing.err);
}
