//! What a build says and does: cache, errors, secrets, reproducible images.

use std::fs;

use crate::env::{World, files};

#[test]
fn a_second_build_is_cached() {
    let world = World::new();
    world
        .busybox()
        .file("Dockerfile", "FROM busybox\nCOPY a /a\nRUN echo built > /b\n")
        .file("a", "1");
    let first = world.build(&[]).ok();
    assert!(first.err.contains("RUN echo built") && !first.err.contains("CACHED"), "{}", first.err);
    let second = world.build(&[]).ok();
    assert_eq!(second.err.matches("CACHED").count(), 2, "{}", second.err);
    world.file("a", "2");
    let third = world.build(&[]).ok();
    assert_eq!(third.err.matches("CACHED").count(), 0, "{}", third.err);
    fs::remove_file(world.path("ctx/a")).expect("removed");
    let fourth = world.file("a", "1").build(&[]).ok();
    assert_eq!(fourth.err.matches("CACHED").count(), 2, "{}", fourth.err);
}

#[test]
fn a_step_that_made_the_same_files_keeps_what_follows() {
    let world = World::new();
    let text = "FROM busybox\nARG N\nRUN echo same > /f\nRUN echo after > /g\n";
    world.busybox().file("Dockerfile", text);
    world.build(&["--no-cache"]).ok();
    let again = world.build(&["--no-cache"]).ok();
    assert_eq!(again.err.matches("(unchanged)").count(), 2, "{}", again.err);
}

#[test]
fn no_cache_empties_cache_mounts() {
    let world = World::new();
    let text = "FROM busybox\nARG N\nRUN --mount=type=cache,id=c,target=/c echo x >> /c/f && wc -l < /c/f\n";
    world.busybox().file("Dockerfile", text);
    let lines = |args: &[&str], expect: &str| {
        let built = world.build(args).ok();
        assert!(built.err.lines().any(|line| line.ends_with(expect)), "{expect:?}: {}", built.err);
    };
    lines(&["--build-arg", "N=1"], " 1");
    lines(&["--build-arg", "N=2"], " 2");
    lines(&["--no-cache", "--build-arg", "N=2"], " 1");
}

#[test]
fn warnings_are_shown_with_their_place() {
    let world = World::new();
    world.busybox().file("Dockerfile", "FROM busybox\nRUN echo a \\\n\n  b\n");
    let built = world.build(&[]).ok();
    assert!(
        built.err.contains("warning[NoEmptyContinuation]: Empty continuation line"),
        "{}",
        built.err
    );
    assert!(built.err.contains("Dockerfile:3:1"), "{}", built.err);
}

#[test]
fn a_failing_step_shows_place_reason_and_output() {
    let world = World::new();
    world.busybox().file("Dockerfile", "FROM busybox\nRUN echo told && false\n");
    let failed = world.build(&[]);
    assert_eq!(failed.code, 1);
    for expect in ["exit code: 1", "told", "Dockerfile:2:1", "2 | RUN echo told && false"] {
        assert!(failed.err.contains(expect), "{expect:?} is not in:\n{}", failed.err);
    }
}

#[test]
fn mistakes_are_told_with_a_remedy() {
    let world = World::new();
    world.busybox().file("x.txt", "");
    for (text, code, expect) in [
        ("FROM busybox\nRNU x\n", 1, "did you mean RUN?"),
        ("FROM busybox\nCOPY x.tx /\n", 1, "\"/x.tx\": not found"),
        ("FROM busybox AS a\nCOPY --from=b /x /\n", 3, "b"),
        ("FROM nosuch.invalid/x\n", 3, "nosuch.invalid"),
        ("# syntax=example.org/other\nFROM scratch\n", 1, "another frontend"),
    ] {
        world.file("Dockerfile", text);
        let failed = world.build(&[]);
        assert!(failed.err.contains(expect), "{text}: {expect:?} is not in:\n{}", failed.err);
        assert_eq!(failed.code, code, "{text}: {}", failed.err);
    }
    for option in ["--load", "--squash", "--provenance=true"] {
        let refused = world.build(&[option]);
        assert_eq!(refused.code, 2, "{option}: {}", refused.err);
        let name = option.split('=').next().expect("a name");
        assert!(refused.err.contains(name), "{option}: {}", refused.err);
    }
}

#[test]
fn secrets_are_found_nowhere() {
    let world = World::new();
    let text = "FROM busybox\nRUN --mount=type=secret,id=s --mount=type=secret,id=e,env=E cat /run/secrets/s | wc -c > /n && test \"$E\" && echo seen\n";
    world.busybox().file("Dockerfile", &text.replace("test \"$E\" && ", ""));
    fs::write(world.path("secret"), "swordfish-4711").expect("written");
    let mut command = world.command();
    command.env("E", "marlin-0815");
    command.args([
        "build",
        "--progress",
        "plain",
        "--secret",
        "id=s,src=secret",
        "--secret",
        "id=e,env=E",
    ]);
    let built = crate::env::said(
        &command.args(["-o", "type=oci,dest=o.tar", "ctx"]).output().expect("starts"),
    );
    assert_eq!(built.code, 0, "{}", built.err);
    for secret in ["swordfish-4711", "marlin-0815"] {
        assert!(!built.err.contains(secret));
        let mut places = files(&world.path("store"));
        places.push(world.path("o.tar"));
        for place in places {
            let bytes = fs::read(&place).expect("readable");
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} is in {}", place.display());
        }
    }
}

/// Two clean stores, seconds apart: the base is imported twice, every step runs twice.
#[test]
fn an_epoch_gives_the_same_image_from_two_clean_stores() {
    let digest = |output: &str| {
        let world = World::new();
        let text =
            "FROM busybox\nCOPY a /d/a\nWORKDIR /w\nENV x=y\nRUN touch new && mkdir -p x/y\n";
        world.busybox().file("Dockerfile", text).file("a", "1");
        let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=1700000000", "--metadata-file", "m.json"];
        world.build(&[&epoch, &["-o", output][..]].concat()).ok();
        let text = fs::read_to_string(world.path("m.json")).expect("metadata");
        let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        document["containerimage.digest"].as_str().expect("a digest").to_owned()
    };
    let as_built = "type=oci,dest=o.tar,rewrite-timestamp=false";
    let first = (digest("type=oci,dest=o.tar"), digest(as_built));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let second = (digest("type=oci,dest=o.tar"), digest(as_built));
    assert_eq!(first.0, second.0);
    assert_ne!(first.1, second.1, "files that a step makes have its time");
}

#[test]
fn more_than_a_hundred_layers_work() {
    let world = World::new();
    let mut text = String::from("FROM busybox\n");
    for number in 0..130 {
        text.push_str(&format!("COPY a /d/{number}\n"));
    }
    text.push_str("RUN ls /d | wc -l\n");
    world.busybox().file("Dockerfile", &text).file("a", "x");
    let built = world.build(&[]).ok();
    assert!(built.err.lines().any(|line| line.ends_with(" 130")), "{}", built.err);
}

#[test]
fn an_add_of_a_url_is_checked() {
    let world = World::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = std::thread::spawn(move || {
        use std::io::{Read, Write};
        for stream in listener.incoming().take(1) {
            let mut stream = stream.expect("a connection");
            let mut request = [0; 1024];
            let _length = stream.read(&mut request).expect("a request");
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
                .expect("answered");
        }
    });
    world
        .busybox()
        .file("Dockerfile", &format!("FROM busybox\nADD http://{address}/f /f\nRUN cat /f\n"));
    let built = world.build(&[]).ok();
    assert!(built.err.contains(" hi"), "{}", built.err);
    server.join().expect("the server ends");
}
