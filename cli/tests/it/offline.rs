//! `--offline`: what is in the store is used, what is not is named, and nobody is asked.

use std::sync::atomic::Ordering;

use crate::env::World;
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
