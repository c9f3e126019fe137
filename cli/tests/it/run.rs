//! `kiln run`: an image is tried at once.

use std::io::Write;
use std::process::Stdio;

use crate::env::{World, kiln, text, tool};

fn world() -> World {
    let world = World::new();
    let file = "FROM busybox\nENV A=image B=image\nWORKDIR /w\nUSER 5:6\nENTRYPOINT [\"sh\", \"-c\"]\nCMD [\"id -u; pwd; echo $A\"]\n";
    world.busybox().file("Dockerfile", file);
    world.build(&["-t", "image"]).ok();
    world
}

#[test]
fn an_image_runs_as_it_says() {
    let world = world();
    assert_eq!(world.kiln(&["run", "image"]).ok().out, "5\n/w\nimage\n");
    let changed = world.kiln(&[
        "run",
        "--rm",
        "-e",
        "A=caller",
        "-w",
        "/tmp",
        "-u",
        "0",
        "image",
        "id -u; pwd; echo $A$B",
    ]);
    assert_eq!(changed.ok().out, "0\n/tmp\ncallerimage\n");
    let other = world.kiln(&["run", "--entrypoint", "echo", "image", "a", "-b"]);
    assert_eq!(other.ok().out, "a -b\n");
}

#[test]
fn an_image_may_have_a_layer_twice() {
    let world = World::new();
    world.busybox();
    // Steps that change nothing have equal layers.
    world.file("Dockerfile", "FROM busybox\nRUN true\nRUN echo 1 >/1\nRUN true && true\n");
    world.build(&["-t", "twice"]).ok();
    world.kiln(&["prune", "--all"]).ok();
    assert_eq!(world.kiln(&["run", "twice", "cat", "/1"]).ok().out, "1\n");
    world.file("Dockerfile", "FROM twice\nRUN cat /1\n");
    world.build(&[]).ok();
}

#[test]
fn the_commands_end_is_the_programs() {
    let world = world();
    let failed = world.kiln(&["run", "image", "echo bad >&2; exit 7"]);
    assert_eq!((failed.code, failed.err.as_str()), (7, "bad\n"));
    assert_eq!(world.kiln(&["run", "image", "kill -9 $$"]).code, 137);
    let missing = world.kiln(&["run", "--entrypoint", "/none", "image"]);
    assert_eq!(missing.code, 1);
    assert!(missing.err.contains("no such file or directory"), "{}", missing.err);
}

#[test]
fn nothing_is_kept_but_in_volumes() {
    let world = world();
    std::fs::create_dir(world.path("shared")).expect("made");
    let volume = format!("{}:/v", text(&world.path("shared")));
    let command = ["run", "-u", "0", "-v", &volume, "image", "touch /kept /v/f && ls /v"];
    assert_eq!(world.kiln(&command).ok().out, "f\n");
    assert!(world.path("shared/f").is_file());
    assert_ne!(world.kiln(&["run", "image", "ls /kept"]).code, 0);
    let read_only = format!("{volume}:ro");
    assert_ne!(world.kiln(&["run", "-u", "0", "-v", &read_only, "image", "touch /v/g"]).code, 0);
}

#[test]
fn input_is_handed_over_where_asked() {
    let world = world();
    for (option, expect) in [("-i", "typed"), ("--rm", "")] {
        let mut command = world.command();
        command.args(["run", option, "image", "cat"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let mut stdin = child.stdin.take().expect("piped");
        // Where nobody reads, the pipe may be closed by now.
        let _closed = stdin.write_all(b"typed");
        drop(stdin);
        let output = child.wait_with_output().expect("ends");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expect);
    }
    let refused = world.kiln(&["run", "-t", "image"]);
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains("--tty needs a terminal"), "{}", refused.err);
}

#[test]
fn a_terminal_has_the_callers_size() {
    let world = world();
    let inner = format!(
        "stty rows 33 cols 44; {} --root {} run -it -u 0 image 'test -t 0 && busybox stty size'",
        text(&kiln()),
        text(&world.path("store")),
    );
    let shown = tool("script", &["-qec", &inner, "/dev/null"]);
    assert!(shown.contains("33 44"), "{shown}");
}
