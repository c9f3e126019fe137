//! Builds of an ordinary user, whom the set-up made: with the ranges of /etc/subuid and with one id.

use std::process::Command;

use crate::env::{Said, World, kiln, said, text, tool};

const USER: &str = "kiln-test";

/// A world that belongs to the user, with a copy of the binary that it can reach.
fn world() -> World {
    let world = World::new();
    // By another process: a descriptor that is open for writing would be inherited by what other tests
    // start, and the file could not be executed (ETXTBSY).
    tool("cp", &[&text(&kiln()), &text(&world.path("kiln"))]);
    world
}

fn give(world: &World) {
    tool("chown", &["-R", USER, &text(&world.path("."))]);
}

/// `kiln ARGS…` as the user.
fn run(world: &World, args: &[&str]) -> Said {
    let mut command = Command::new("runuser");
    command.args(["-u", USER, "--", "env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin"]);
    command.arg(format!("HOME={}", text(&world.path("."))));
    command.arg(format!("KILN_ROOT={}", text(&world.path("user-store"))));
    command.arg(world.path("kiln")).args(args).current_dir(world.path("."));
    said(&command.output().expect("runuser starts"))
}

fn build(world: &World, isolation: &str, more: &[&str]) -> Said {
    let first = ["--isolation", isolation, "build", "--progress", "plain"];
    run(world, &[&first, more, &["ctx"][..]].concat())
}

const DOCKERFILE: &str = "FROM busybox\n\
    COPY --chown=33:34 a /a\n\
    RUN id -u && cat /proc/self/uid_map && touch /made && ls -ln /a\n\
    USER 5:6\n\
    RUN id -u && ! touch /forbidden\n";

#[test]
fn ranges_give_images_their_ids() {
    let world = world();
    world.busybox().file("Dockerfile", DOCKERFILE).file("a", "x");
    give(&world);
    run(&world, &["import", "busybox.tar", "busybox"]).ok();
    let built = build(&world, "ranges", &["-o", "type=tar,dest=root.tar"]).ok();
    assert!(!built.err.contains("note:"), "{}", built.err);
    assert!(built.err.contains(" 33 "), "{}", built.err);
    let listed = tool("tar", &["--numeric-owner", "-tvf", &text(&world.path("root.tar"))]);
    let owner = |name: &str| {
        let line = listed.lines().find(|line| line.ends_with(name)).expect("listed");
        line.split_whitespace().nth(1).expect("an owner").to_owned()
    };
    assert_eq!((owner(" a").as_str(), owner(" made").as_str()), ("33/34", "0/0"));
    let again = build(&world, "ranges", &[]).ok();
    assert_eq!(again.err.matches(" CACHED").count(), 3, "{}", again.err);
}

#[test]
fn fuse_overlayfs_serves_users() {
    let world = world();
    world.busybox().file("a", "x").file(
        "Dockerfile",
        "FROM busybox\nCOPY --chmod=644 a /a\nRUN grep ' / fuse' /proc/mounts && touch /made && ls -ln /a\n\
         RUN --mount=type=cache,target=/cache rm /a && touch /cache/x\nUSER 0\nRUN ls /made && ! test -e /a\n",
    );
    give(&world);
    run(&world, &["import", "busybox.tar", "busybox"]).ok();
    for isolation in ["ranges", "single-id"] {
        let options = ["--snapshotter", "fuse-overlayfs", "--isolation", isolation];
        let build = ["build", "--progress", "plain", "--no-cache", "ctx"];
        let built = run(&world, &[&options[..], &build].concat()).ok();
        assert!(built.err.contains(" / fuse"), "{}", built.err);
    }
}

/// Between root, an ordinary user with ranges and one with one id.
#[test]
fn cache_mounts_travel_between_users() {
    let world = world();
    let mount = "RUN --mount=type=cache,id=go,target=/m";
    let make = "echo data >/m/f && busybox chown 33:34 /m/f && mkdir /m/d && busybox chown 33 /m/d";
    world.busybox().file("Dockerfile", &format!("FROM busybox\n{mount} {make}\n"));
    let spec = |kind: &str, name: &str| {
        format!(
            "--cache-{kind}=type=local,{}={name},mounts=go",
            if kind == "to" { "dest" } else { "src" }
        )
    };
    world.build(&[&spec("to", "by-root")]).ok();
    let look = format!("FROM busybox\n{mount} cat /m/f && ls -ln /m && touch /m/d/more\n");
    world.file("Dockerfile", &look);
    give(&world);
    for isolation in ["ranges", "single-id"] {
        let from = spec("from", "by-root");
        run(&world, &["--isolation", isolation, "import", "busybox.tar", "busybox"]).ok();
        let built = build(&world, isolation, &[&from, &spec("to", isolation)]);
        let built = built.ok();
        assert!(built.err.contains(" data") && !built.err.contains("warning"), "{}", built.err);
        let owner = if isolation == "ranges" { " 33       34 " } else { " 0        0 " };
        assert!(built.err.contains(owner), "{isolation}: {}", built.err);
        tool("rm", &["-rf", &text(&world.path("user-store"))]);
    }
    // Back again, with the owners that the user's machine had.
    let back = World::new();
    back.busybox().file("Dockerfile", &look.replace("cat", ": && cat"));
    let from = format!("--cache-from=type=local,src={},mounts=go", text(&world.path("ranges")));
    let built = back.build(&[&from]).ok();
    assert!(built.err.contains(" 33       34 "), "{}", built.err);
    assert!(built.err.contains("2 files"), "{}", built.err);
}

#[test]
fn one_id_builds_what_needs_no_other_and_says_so() {
    let world = world();
    let text = DOCKERFILE.split("USER").next().expect("the first part");
    world.busybox().file("Dockerfile", text).file("a", "x");
    give(&world);
    run(&world, &["--isolation", "single-id", "import", "busybox.tar", "busybox"]).ok();
    let built = build(&world, "single-id", &["-o", "type=oci,dest=image.tar"]).ok();
    assert_eq!(built.err.matches("note: steps have one user id").count(), 1, "{}", built.err);
    assert!(world.path("image.tar").is_file());
}

#[test]
fn a_tier_that_is_named_is_not_replaced() {
    let world = world();
    give(&world);
    let refused = run(&world, &["--isolation", "root", "images"]);
    assert_eq!(refused.code, 3, "{}", refused.err);
    assert!(refused.err.contains("--isolation=root is not possible here"), "{}", refused.err);
}

#[test]
fn files_of_steps_belong_to_nobody_of_the_machine() {
    let world = World::new();
    world.busybox();
    let script =
        "FROM busybox\nRUN --mount=type=cache,target=/c sleep 1 && cat /proc/self/uid_map\n";
    world.file("Dockerfile", script);
    let built = world.build(&[]).ok();
    // root of a step is no user of the machine.
    assert!(built.err.contains("0 1342177280"), "{}", built.err);
    let host = world.build(&["--userns", "host", "--no-cache"]).ok();
    assert!(host.err.contains("4294967295"), "{}", host.err);
}

/// With ranges and with one id: bundles are files of root, who is nobody outside.
#[test]
fn authorities_of_the_caller_are_trusted() {
    let world = world();
    let text = "FROM busybox\nCOPY own.crt /etc/ssl/cert.pem\n\
        RUN grep -c BEGIN /etc/ssl/cert.pem && busybox cp /etc/ssl/cert.pem /copy && ls -n /etc/ssl/cert.pem\n";
    world.busybox().file("Dockerfile", text).file("own.crt", "own\n");
    let certificate = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    std::fs::write(world.path("ca.pem"), certificate).expect("written");
    give(&world);
    run(&world, &["import", "busybox.tar", "busybox"]).ok();
    for isolation in ["ranges", "single-id"] {
        let dest = format!("type=local,dest=out-{isolation}");
        let more = ["--no-cache", "--ca-certs", "ca.pem", "-o", &dest];
        let built = build(&world, isolation, &more).ok();
        assert!(built.err.contains(" 0        0 "), "{isolation}: {}", built.err);
        let copy = std::fs::read_to_string(world.path(&format!("out-{isolation}/copy")));
        assert_eq!(copy.expect("copied"), "own\n", "{isolation}");
    }
}
