//! V28 to V33: what a Dockerfile asks for and what an image says of itself are data.

use serde_json::{Value, json};

use crate::attack::{Attack, QUIET};
use crate::hostile::{Tree, layout};

/// A layer with busybox.
fn base() -> Tree {
    Tree::busybox().folder("etc").folder("tmp").file("etc/passwd", "root:x:0:0::/root:/bin/sh\n")
}

/// V28: privileges come from the command line alone, and an unknown word is an error.
#[test]
fn v28_privileges_are_granted_by_the_caller_only() {
    let attack = Attack::new();
    for (flag, reason) in [
        ("--security=insecure", "security.insecure is not allowed"),
        ("--security=INSECURE", ""),
        ("--security=x", "security"),
        ("--security=", "security"),
        ("--security=sandbox,insecure", "security"),
        ("--network=HOST", "network"),
        ("--network=container:1", "network"),
        ("--privileged", "privileged"),
        ("--cap-add=SYS_ADMIN", "cap-add"),
    ] {
        attack.build(&format!("FROM busybox\nRUN {flag} id\n"), &[]).refused(reason);
    }
    let sandboxed = "FROM busybox\nRUN --security=sandbox grep Seccomp: /proc/self/status\n";
    attack.build(sandboxed, &["--allow", "security.insecure"]).ok().told("Seccomp:\t2");
}

/// V29: variables and labels of an image change nothing of the host and bring nothing of it in.
#[test]
fn v29_image_metadata_is_data() {
    let attack = Attack::new();
    let host = attack.sentinel.path();
    let config = json!({
        "Env": ["NOEQUALS", "AWS_SECRET", "PATH", "*", "=x", "", "A=b", "LD_PRELOAD=/evil.so"],
        "Labels": {
            "run.oci.hooks": format!("touch {host}/x"), "run.oci.keep_original_groups": "1",
            "io.containers.capabilities": "sys_admin", "org.systemd.property.Slice": "'x'",
            "io.containerd.runc.v2.group": host, "devices.cdi.k8s.io/x": "vendor.com/d=all",
        },
        "WorkingDir": "../../..", "Volumes": {host.clone(): {}, "../../x": {}},
        "OnBuild": ["RUN /bin/env"],
    });
    let named = layout(&attack.world, "hostile", &config, &[base().archive()]);
    let text = "FROM hostile AS a\nFROM a AS b\nFROM b\nRUN [\"/bin/env\"]\n";
    attack.world.file("Dockerfile", text);
    let mut command = attack.world.command();
    command.env("AWS_SECRET", "marlin-0815").env("NOEQUALS", "marlin-0815");
    command.args(["build", "--progress", "plain", QUIET, "--build-context", &named, "ctx"]);
    let said = attack.checked(&mut command);
    assert!(!said.err.contains("marlin-0815"), "{}", said.err);
    if said.code == 0 {
        said.told(" A=b");
    } else {
        assert_eq!(said.code, 1, "{}", said.err);
    }
    let odd = |env: Value| {
        let config = json!({"Env": env});
        let named = layout(&attack.world, "odd", &config, &[base().archive()]);
        let text = "FROM odd\nRUN [\"/bin/env\"]\n";
        attack.build(text, &["--build-context", &named, "--no-cache"])
    };
    odd(json!(["A=b\u{0}C=d"]));
    odd(json!(["A=b\nC=d"]));
    odd(json!([["A"]])).refused("");
}

/// V30: the users of an image are read from a small regular file of it, and numbers stay numbers.
#[test]
fn v30_user_files_are_bounded() {
    let attack = Attack::new();
    attack.world.file("x", "x");
    let host = format!("{}/passwd", attack.sentinel.path());
    let long = format!("foo:x:7:7:{}:/:/bin/sh\n", "x".repeat(11 << 20));
    let trees = [
        Tree::busybox().folder("etc").link("etc/passwd", "/dev/zero"),
        Tree::busybox().folder("etc").link("etc/passwd", &host),
        Tree::busybox().folder("etc").link("etc/passwd", "../../../../../../etc/passwd"),
        Tree::busybox().folder("etc").link("etc/passwd", "passwd"),
        Tree::busybox().folder("etc").fifo("etc/passwd"),
        Tree::busybox().folder("etc").folder("etc/passwd"),
        Tree::busybox().folder("etc").device("etc/passwd"),
        Tree::busybox().folder("etc").file("etc/passwd", &long),
    ];
    for tree in trees {
        attack.image("hostile", tree);
        attack.build("FROM hostile\nUSER foo\nRUN true\n", &["--no-cache"]).refused("foo");
        let said = attack
            .build("FROM hostile\nCOPY --chown=foo x /x\nRUN stat -c %u /x\n", &["--no-cache"]);
        assert!(said.code != 0 || said.err.contains(" 0\n"), "{}", said.err);
    }
    let hole = "RUN dd if=/dev/null of=/etc/passwd bs=1 seek=67108864";
    attack.build(&format!("FROM busybox\n{hole}\nUSER foo\nRUN true\n"), &[]).refused("foo");
}

/// V30: a number that is none, or too large, is an error and not another user.
#[test]
fn v30_numbers_of_users_do_not_wrap() {
    let attack = Attack::new();
    attack.world.file("x", "x");
    let run = |user: &str| {
        let text = format!("FROM busybox\nUSER {user}\nRUN id -u && id -g\n");
        attack.build(&text, &["--no-cache"])
    };
    for user in [
        "4294967296",
        "-1",
        "4294967295",
        "18446744073709551616",
        "0x0",
        "٣",
        "0:4294967296",
        "0:-1",
    ] {
        assert_eq!(run(user).code, 1, "USER {user}: {}", run(user).err);
    }
    run("+0");
    run("1000:").ok().told(" 1000");
    run(":5").ok().told(" 5");
    for owner in ["4294967296", "-1", "4294967295", "0:4294967296", "18446744073709551616"] {
        let text = format!("FROM busybox\nCOPY --chown={owner} x /x\nRUN stat -c %u:%g /x\n");
        let said = attack.build(&text, &["--no-cache"]);
        assert_eq!(said.code, 1, "--chown={owner}: {}", said.err);
    }
    for user in ["4294967296", "-1", "\u{0}", " 0", "0\nx", "x:y:z", "../../etc"] {
        let config = json!({"User": user});
        let named = layout(&attack.world, "odd", &config, &[base().archive()]);
        let args = ["--build-context", &named, "--no-cache"];
        let said = attack.build("FROM odd\nRUN id\n", &args);
        assert_eq!(said.code, 1, "{user:?}: {}", said.err);
    }
}

/// V31: a step has the groups of its user in the image, and no others.
#[test]
fn v31_groups_are_those_of_the_image() {
    let attack = Attack::new();
    let groups = "root:x:0:\nstaff:x:50:foo,bar\nlow:x:60:foo\nfoo:x:7:\n";
    let tree = base().file("etc/passwd", "root:x:0:0::/:/bin/sh\nfoo:x:7:7::/:/bin/sh\n");
    let denied = (0o070, 0, 999);
    let tree = tree.file("etc/group", groups).entry(
        tar::EntryType::Directory,
        ("closed", ""),
        denied,
        &[],
    );
    attack.image("groups", tree);
    attack.world.file(
        "Dockerfile",
        "FROM groups\nRUN grep Groups: /proc/self/status\nUSER foo\nRUN id -G; ! ls /closed\n\
         USER foo:50\nRUN id -G; ! ls /closed\nUSER 1234\nRUN id -G; ! ls /closed\n",
    );
    let said = attack.build_by("setpriv", &["--groups", "999,998"]).ok();
    assert!(!said.err.contains("999"), "{}", said.err);
    said.told("Groups:\t0 ").told(" 7 50 60").told(" 50").told(" 0");
}

/// V32: no other frontend runs, and none is asked for.
#[test]
fn v32_no_external_frontend_runs() {
    let attack = Attack::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("set");
    let name = format!("{}/evil/x", listener.local_addr().expect("an address"));
    attack.build(&format!("# syntax={name}\nFROM busybox\nRUN id\n"), &[]).refused("frontend");
    let argument = format!("BUILDKIT_SYNTAX={name}");
    attack.build("FROM busybox\n", &["--build-arg", &argument]).refused("frontend");
    attack.build("# syntax=docker/dockerfile:1\nFROM busybox\nRUN id\n", &[]).ok();
    let asked = listener.accept().map(drop).map_err(|error| error.kind());
    assert_eq!(asked, Err(std::io::ErrorKind::WouldBlock), "nobody asked for it");
}

/// V33: instructions of a base obey the rules of a Dockerfile, and are shown.
#[test]
fn v33_instructions_of_a_base_are_bounded() {
    let attack = Attack::new();
    let with = |config: Value| {
        let named = layout(&attack.world, "base", &config, &[base().archive()]);
        let args = ["--build-context", &named, "--no-cache"];
        attack.build("FROM base AS a\nRUN true\nFROM a\nRUN true\n", &args)
    };
    let host = attack.sentinel.path();
    for trigger in [
        "FROM x",
        "FROM busybox",
        "ONBUILD RUN id",
        "RUN --mount=type=bind,from=/,target=/x cat /x/etc/hostname",
        "RUN --security=insecure id",
        "RUN --network=host id",
        "RNU id",
        "",
        "ARG",
        "MAINTAINER x\nRUN touch /x",
    ] {
        let said = with(json!({"OnBuild": [trigger]}));
        assert!(said.code != 0, "{trigger:?}: {}", said.err);
    }
    with(json!({"OnBuild": [format!("ADD {host}/shadow /x")]})).refused("not found");
    with(json!({"OnBuild": ["ADD ../../../etc/shadow /x"]})).refused("not found");
    let said = with(json!({"OnBuild": ["RUN echo of-the-base"]})).ok().told(" of-the-base");
    let shown = said.err.lines().filter(|line| line.ends_with("RUN echo of-the-base")).count();
    assert_eq!(shown, 1, "it runs once and is shown: {}", said.err);
    let odd = json!({
        "StopSignal": "; rm -rf /", "Shell": [], "Volumes": {"": {}, "/": {}, "/proc": {}},
        "Healthcheck": {"Test": ["CMD-SHELL", "touch /x"], "Interval": -5, "Retries": -1},
        "ExposedPorts": {"99999/x": {}, "": {}}, "Entrypoint": [], "WorkingDir": "/proc/self/fd/9/..",
    });
    with(odd);
    with(json!({"Shell": ["/nothing"]})).refused("/nothing");
}
