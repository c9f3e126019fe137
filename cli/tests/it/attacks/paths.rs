//! V08 to V12: contexts, copies, outputs, special files, programs of the image.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use nix::sys::stat::Mode;
use serde_json::json;

use crate::attack::Attack;
use crate::env::{text, tool};
use crate::hostile::{Tree, layout};

/// V08: a context is unpacked and its Dockerfile opened inside it, whatever links it has.
#[test]
fn v08_a_context_leads_nowhere_else() {
    let attack = Attack::new();
    let host = attack.sentinel.path();
    let outside = format!("{host}/f");
    let from = "FROM busybox\n";
    let whole = Tree::new().link("Dockerfile", &outside).file("Dockerfile.more", from).archive();
    let written = Tree::new().link("Dockerfile", &outside).file("Dockerfile", from).archive();
    let below = Tree::new().link("sub", &host).file("sub/f", "x").file("Dockerfile", from);
    let mut cut = whole.clone();
    cut.truncate(1100);
    for archive in [whole, cut, written, below.archive()] {
        fs::write(attack.world.path("context.tar"), archive).expect("file written");
        let stdin = fs::File::open(attack.world.path("context.tar")).expect("there");
        let mut command = attack.world.command();
        attack.checked(command.args(["build", "--progress", "plain", "-"]).stdin(stdin));
    }
    let folder = attack.world.path("r.git");
    fs::create_dir(&folder).expect("folder made");
    symlink(&host, folder.join("sub")).expect("link made");
    symlink(&outside, folder.join("Dockerfile")).expect("link made");
    let fixed = ["-C", &text(&folder), "-c", "user.email=a@b", "-c", "user.name=n"];
    for args in [&["init", "-q", "-b", "main"][..], &["add", "."], &["commit", "-qm", "1"]] {
        tool("git", &[&fixed[..], args].concat());
    }
    for part in ["#main:sub", "#main", "#main:../../.."] {
        let url = format!("file://{}{part}", text(&folder));
        let said = attack.checked(attack.world.command().args(["build", &url]));
        assert_ne!(said.code, 0, "{part}: {}", said.err);
    }
}

/// V08: a Dockerfile is a regular file of bounded size.
#[test]
fn v08_a_dockerfile_is_a_regular_file() {
    let attack = Attack::new();
    attack.world.file("Dockerfile", "FROM busybox\n");
    for file in ["/dev/zero", "/dev/tty", "ctx", "/proc/self/mem", "ctx/Dockerfile/x"] {
        let said = attack.checked(attack.world.command().args(["build", "-f", file, "ctx"]));
        assert_ne!(said.code, 0, "{file}: {}", said.err);
    }
    fs::remove_file(attack.world.path("ctx/Dockerfile")).expect("removed");
    nix::unistd::mkfifo(&attack.world.path("ctx/Dockerfile"), Mode::S_IRWXU).expect("made");
    let said = attack.checked(attack.world.command().args(["build", "ctx"]));
    said.refused("no regular file");
}

/// V09: copies resolve inside the trees that they read and write.
#[test]
fn v09_copies_stay_in_their_trees() {
    let attack = Attack::new();
    let host = attack.sentinel.path();
    let links = || Tree::busybox().link("link", &host).link("up", "../../../../../../../../..");
    attack.image("links", links().folder("real"));
    attack.world.file("x", "of the context");
    let inside = host.trim_start_matches('/');
    let out = attack.output(
        "FROM links\nCOPY x /link/y\nCOPY x /link/f\nCOPY x /up/z\nWORKDIR /link/w\nRUN echo x > made\n",
        &[],
    );
    for name in ["y", "f", "w/made"] {
        assert!(out.join(inside).join(name).exists(), "{name} is inside the image");
    }
    assert!(out.join("z").exists());
    attack
        .build("FROM links AS a\nFROM busybox\nCOPY --from=a /link/f /f\n", &[])
        .refused("not found");
    attack
        .build("FROM links AS a\nFROM busybox\nCOPY --from=a /link /l\n", &[])
        .refused("not found");
    symlink(&host, attack.world.path("ctx/out")).expect("link made");
    attack.build("FROM busybox\nCOPY out/f /f\n", &[]).refused("not found");
    for text in ["COPY out/* /f/", "COPY out /f", "COPY . /f/", "ADD ../sentinel* /f/"] {
        attack.build(&format!("FROM busybox\n{text}\n"), &["-o", "copies"]);
    }
    attack.sentinel.is_not_in(&attack.world.path("copies"));
}

/// V09: a copy from a stage sees what the stage's steps left, not what runs meanwhile.
#[test]
fn v09_a_copy_is_not_made_beside_processes() {
    let attack = Attack::new();
    let swap = "(while true; do rm -rf /d; mkdir /d; echo x > /d/f; rm -rf /d; ln -s SENTINEL /d; done) & sleep 0.2";
    let text = format!("FROM busybox AS a\nRUN {swap}; true\nFROM busybox\nCOPY --from=a / /a/\n");
    let out = attack.output(&text, &[]);
    attack.sentinel.is_not_in(&out);
}

/// V10: layers and local outputs are written beneath their folder, also through links planted in it.
#[test]
fn v10_trees_are_written_beneath_their_folder() {
    let attack = Attack::new();
    let host = attack.sentinel.path();
    attack.import("planted", Tree::busybox().link("a", &host).file("a/x", "written"));
    let below = format!("a{host}/x");
    attack.import("planted", Tree::busybox().link("a", "/").file(&below, "written"));
    let link = Tree::new().link("a", &host).archive();
    let through = Tree::new().file("a/x", "written").archive();
    let named = layout(&attack.world, "two", &json!({}), &[link, through]);
    attack.build("FROM two\nCOPY Dockerfile /d\n", &["--build-context", &named, "-o", "out"]);
    attack.world.file("x", "written");
    let planted = attack.world.path("planted");
    fs::create_dir(&planted).expect("folder made");
    symlink(&host, planted.join("a")).expect("link made");
    symlink(format!("{host}/f"), planted.join("g")).expect("link made");
    for text in ["COPY x /a/x", "COPY x /a/sub/x", "COPY x /g", "WORKDIR /a/new"] {
        attack.build(&format!("FROM scratch\n{text}\n"), &["-o", "planted"]);
    }
}

/// V10: a blob of an OCI layout is a regular file of it.
#[test]
fn v10_a_layout_reads_no_other_files() {
    let attack = Attack::new();
    let named =
        layout(&attack.world, "layout", &json!({}), &[Tree::new().file("x", "x").archive()]);
    let blobs = attack.world.path("layout/blobs/sha256");
    let of_host = format!("{}/shadow", attack.sentinel.path());
    for blob in fs::read_dir(&blobs).expect("readable").flatten() {
        let kept = fs::read(blob.path()).expect("readable");
        for target in [of_host.as_str(), "/dev/zero"] {
            fs::remove_file(blob.path()).expect("removed");
            symlink(target, blob.path()).expect("link made");
            let said = attack.build("FROM layout\nCOPY x /y\n", &["--build-context", &named]);
            assert_ne!(said.code, 0, "{}", said.err);
        }
        fs::remove_file(blob.path()).expect("removed");
        nix::unistd::mkfifo(&blob.path(), Mode::S_IRWXU).expect("made");
        let said = attack.build("FROM layout\nCOPY x /y\n", &["--build-context", &named]);
        assert_ne!(said.code, 0, "{}", said.err);
        fs::remove_file(blob.path()).expect("removed");
        fs::write(blob.path(), kept).expect("written");
    }
    attack
        .build("FROM layout\nCOPY x /y\n", &["--build-context", &named, "--no-cache"])
        .refused("x");
}

/// V11: special files are copied or refused, never opened.
#[test]
fn v11_special_files_do_not_hang_a_build() {
    let attack = Attack::new();
    attack
        .build("FROM busybox\nRUN busybox mkfifo /f\nFROM busybox\nCOPY --from=0 /f /g\n", &[])
        .ok();
    attack.build("FROM busybox\nRUN busybox mkfifo /f\nFROM busybox\nCOPY --from=0 / /g/\nRUN test -p /g/f\n", &[]).ok();
    let step = "! busybox mknod /d b 8 0 && ! busybox mknod /d c 1 1";
    attack.build(&format!("FROM busybox\nRUN {step}\n"), &[]).ok();
    attack.image("device", Tree::busybox().device("d").fifo("p"));
    attack
        .build("FROM device AS a\nFROM busybox\nCOPY --from=a /d /p /g/\nRUN ls -l /g\n", &[])
        .ok();
    attack.image("fifos", Tree::busybox().folder("etc").fifo("etc/passwd").fifo("etc/group"));
    attack.build("FROM fifos\nUSER nobody\nRUN true\n", &[]).refused("nobody");
    attack.world.file("x", "x");
    attack.build("FROM fifos\nCOPY --chown=nobody x /x\n", &[]);
    nix::unistd::mkfifo(&attack.world.path("ctx/fifo"), Mode::S_IRWXU).expect("made");
    let _socket = UnixListener::bind(attack.world.path("ctx/socket")).expect("bound");
    for step in [
        "COPY . /all/",
        "COPY fifo /f",
        "COPY socket /s",
        "ADD fifo /f",
        "RUN --mount=type=bind,target=/c ls /c",
    ] {
        attack.build(&format!("FROM busybox\n{step}\n"), &[]);
    }
    fs::remove_file(attack.world.path("ctx/fifo")).expect("removed");
    nix::unistd::mkfifo(&attack.world.path("ctx/.dockerignore"), Mode::S_IRWXU).expect("made");
    attack.build("FROM busybox\nCOPY x /x\n", &[]);
}

/// V12: no program or library of the image runs outside of a step.
#[test]
fn v12_programs_of_the_image_run_in_steps_only() {
    let attack = Attack::new();
    let script = format!("#!/bin/sh\ntouch /RAN {}/RAN\n", attack.sentinel.path());
    let mut tree = Tree::busybox().folder("usr").folder("usr/bin").folder("etc").folder("lib");
    let names =
        ["usr/bin/xz", "usr/bin/unxz", "usr/bin/gzip", "usr/bin/tar", "bin/tar", "bin/gzip"];
    for name in names.into_iter().chain(["lib/libnss_files.so.2", "usr/bin/newuidmap"]) {
        tree = tree.program(name, script.as_bytes());
    }
    attack.image("hostile", tree.file("etc/passwd", "foo:x:7:7::/:/bin/sh\n"));
    let folder = attack.world.path("packed");
    fs::create_dir(&folder).expect("folder made");
    fs::write(folder.join("content"), "unpacked").expect("written");
    attack.world.file("x", "x");
    let context = attack.world.path("ctx");
    for (option, name) in [("-J", "a.tar.xz"), ("-z", "b.tar.gz"), ("-j", "c.tar.bz2")] {
        tool("tar", &["-C", &text(&folder), option, "-cf", &text(&context.join(name)), "content"]);
    }
    let out = attack.output(
        "FROM hostile\nADD a.tar.xz /a/\nADD b.tar.gz /b/\nADD c.tar.bz2 /c/\nUSER foo\nCOPY --chown=foo x /x\nRUN test ! -e /RAN\n",
        &[],
    );
    for name in ["a/content", "b/content", "c/content"] {
        assert!(out.join(name).exists(), "{name}");
    }
    assert!(!out.join("RAN").exists());
}
