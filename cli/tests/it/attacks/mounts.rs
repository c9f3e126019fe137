//! V01 to V07, V15 to V18: mounts of steps, their sources, targets and what remains of them.

use std::fs;
use std::process::Stdio;

use crate::attack::{Attack, QUIET, ended, wait_until};
use crate::env::said;
use crate::hostile::Tree;
use crate::probe;

/// V01: the source of a mount resolves inside the stage that it is from.
#[test]
fn v01_a_mount_source_stays_in_its_stage() {
    let attack = Attack::new();
    let stage = "FROM busybox AS b\nRUN ln -s / /rootdir && ln -s SENTINEL /host && touch /of-b\nFROM busybox\n";
    let step = "sh -c 'ls /x && touch /x/BREAKOUT && touch /x/bin/BREAKOUT'";
    for source in ["/rootdir", "/rootdir/../../..", "../../../..", "/proc/../rootdir"] {
        let mount = format!("--mount=type=bind,from=b,source={source},target=/x,rw");
        let said = attack.build(&format!("{stage}RUN {mount} {step}\n"), &["--no-cache"]);
        if said.code == 0 {
            said.told(" of-b");
        } else {
            said.refused("not found");
        }
    }
    for source in ["/host", "/rootdir/host/sub", "SENTINEL"] {
        let mount = format!("--mount=type=bind,from=b,source={source},target=/x,rw");
        attack.build(&format!("{stage}RUN {mount} {step}\n"), &[]).refused("not found");
    }
    assert!(!std::path::Path::new("/BREAKOUT").exists());
}

/// V02: what a Dockerfile chooses is never part of a path of the host.
#[test]
fn v02_an_id_is_not_a_path() {
    let attack = Attack::new();
    let long = "i".repeat(10_000);
    let ids = [
        "../../../../../../..SENTINEL",
        "SENTINEL",
        "../..",
        "/etc",
        "",
        ".",
        "a/b",
        "a\0b",
        &long,
    ];
    let mut steps = String::from("FROM busybox\n");
    for id in ids {
        steps.push_str(&format!("RUN --mount=type=cache,id={id},target=/c touch /c/escaped\n"));
    }
    steps.push_str(
        "RUN --mount=type=cache,source=../../../../../..SENTINEL,target=/c touch /c/escaped\n",
    );
    attack.build(&steps, &[]).ok();
    let place = attack.world.path("store");
    for file in crate::env::files(&attack.world.path("")) {
        let inside = file.starts_with(&place);
        assert!(inside || !file.ends_with("escaped"), "{} is outside", file.display());
    }
    attack.build("FROM --platform=linux/../../x busybox\n", &[]).refused("platform");
    attack.build("FROM busybox\n", &["--platform=linux/../../x"]).refused("platform");
    attack.build("FROM busybox\nRUN <<../E\n#!/bin/sh\n../E\n", &[]).refused("heredoc");
}

/// V03: what a mount point is cannot change between its check and the mount (300 rounds).
#[test]
fn v03_a_link_swapped_in_a_shared_cache_leads_nowhere() {
    let attack = Attack::new();
    attack.image("swap", Tree::busybox().program("bin/probe", &probe::program()));
    let cache = "--mount=type=cache,id=c,target=/c";
    let host = attack.sentinel.path();
    let swap =
        format!("mkdir -p /c/sub; ln -sfn {host} /c/link; : > /c/ready; probe swap /c/sub /c/link");
    attack.world.file("swap/Dockerfile", &format!("FROM swap\nRUN {cache} {swap}\n"));
    let mut swapping = attack.world.command();
    swapping.args(["build", QUIET, "ctx/swap"]).stderr(Stdio::null());
    let mut swapping = swapping.spawn().expect("it starts");
    // The host's folder is in the image as well: a link to it is a mount point like any other.
    let mut text = format!(
        "FROM busybox AS base\nRUN {cache} mkdir -p {host}; while ! test -e /c/ready; do sleep 0.05; done\n"
    );
    let mut all = String::from("FROM base\nRUN");
    for stage in 0..10 {
        text.push_str(&format!("FROM base AS s{stage}\n"));
        all.push_str(&format!(" --mount=type=bind,from=s{stage},target=/s{stage}"));
        for round in 0..30 {
            let mount = format!("{cache} --mount=type=tmpfs,target=/c/sub/");
            text.push_str(&format!("RUN {mount} echo {round} > /c/sub/x; true\n"));
        }
    }
    attack.world.file("Dockerfile", &format!("{text}{all} true\n"));
    let mut command = attack.world.command();
    let built = ended(command.args(["build", "--progress", "plain", QUIET, "ctx"]));
    swapping.kill().expect("killed");
    swapping.wait().expect("reaped");
    wait_until("its step is gone", || !attack.sentinel.runs_in(&attack.world));
    attack.sentinel.is_unharmed(&attack.world, &said(&built).ok());
}

/// V04: mount points leave nothing behind, neither on the host nor in the layer.
#[test]
fn v04_mount_points_are_not_cleaned_up_through_links() {
    let attack = Attack::new();
    let mount = "--mount=type=tmpfs,target=/a/b --mount=type=cache,target=/sub/x --mount=type=secret,id=s,target=/k/l";
    for step in [
        "umount /a/b; rm -rf /a /sub; ln -s SENTINEL /a; ln -s SENTINEL/sub /sub; true",
        "mv /a /z; ln -s SENTINEL /a; mv /sub /y; ln -s SENTINEL/sub /sub; true",
        "true",
    ] {
        let out = attack.output(&format!("FROM busybox\nRUN {mount} {step}\n"), &[]);
        attack.sentinel.is_not_in(&out);
        for stub in ["a/b", "sub/x", "k", "proc", "sys", "dev"] {
            assert!(
                fs::symlink_metadata(out.join(stub)).is_err(),
                "{stub} is in the layer: {step}"
            );
        }
    }
}

/// V05: options of mounts are words of a list, not text for mount(2).
#[test]
fn v05_mount_options_are_an_enumeration() {
    let attack = Attack::new();
    for option in [
        "bind-propagation=rshared,dev,suid",
        "bind-propagation=rshared",
        "dev",
        "suid",
        "rw=\"true,suid\"",
        "options=exec",
        "ro=suid",
        "type=BIND,type=overlay",
    ] {
        let mount = format!("--mount=type=bind,source=.,target=/x,{option}");
        let said = attack.build(&format!("FROM busybox\nRUN {mount} id\n"), &[]);
        assert_eq!(said.code, 1, "{option}: {}", said.err);
        said.refused("Dockerfile:2:");
    }
}

/// V06: writes to a bind mount of the context are gone after the step.
#[test]
fn v06_a_writable_bind_of_the_context_is_thrown_away() {
    let attack = Attack::new();
    attack.world.file("kept", "as it was");
    let step = "RUN --mount=type=bind,target=/c,rw sh -c 'echo x > /c/new; echo x > /c/kept; rm /c/Dockerfile'";
    let next = "RUN --mount=type=bind,target=/c sh -c 'ls /c; cat /c/kept'";
    let said = attack.build(&format!("FROM busybox\n{step}\n{next}\n"), &[]).ok();
    let said = said.told(" Dockerfile").told(" as it was");
    assert!(!said.err.contains(" new\n"), "{}", said.err);
    assert_eq!(fs::read_to_string(attack.world.path("ctx/kept")).expect("there"), "as it was");
    assert!(attack.world.path("ctx/Dockerfile").exists());
    assert!(!attack.world.path("ctx/new").exists());
}

/// V07: what every step has mounted does not follow the image's links out.
#[test]
fn v07_automatic_mounts_follow_no_link_out() {
    let attack = Attack::new();
    let host = attack.sentinel.path();
    let to = |name: &str| format!("{host}/{name}");
    let trees = [
        Tree::busybox().folder("etc").link("etc/resolv.conf", &to("resolv.conf")),
        Tree::busybox().folder("etc").link("etc/hosts", &to("hosts")),
        Tree::busybox().link("etc", "/"),
        Tree::busybox().link("etc", &host),
        Tree::busybox().folder("etc").link("etc/hosts", "/proc/1/root/etc/hosts"),
        Tree::busybox().folder("etc").link("etc/hosts", "../../../../../../etc/hosts"),
        Tree::busybox().folder("run").link("run/secrets", &host).folder("etc"),
    ];
    fs::write(attack.world.path("ctx-secret"), "s").expect("written");
    for (number, tree) in trees.into_iter().enumerate() {
        attack.image("hostile", tree);
        let step = "RUN --mount=type=secret,id=f cat /etc/hosts && echo x > /etc/x";
        let text = format!("FROM hostile\n{step}\n");
        let said = attack.build(&text, &["--no-cache", "--secret", "id=f,src=ctx-secret"]);
        assert!(
            said.code == 0 || said.err.contains("cannot set up the step"),
            "{number}: {}",
            said.err
        );
    }
}

/// V15: what is masked is masked by a device of ours, whatever /dev/null of the image is.
#[test]
fn v15_masks_are_not_the_images_null_device() {
    let attack = Attack::new();
    let check = "RUN wc -c < /proc/interrupts && test -c /dev/null && \
        ! (echo h > /proc/sysrq-trigger) && ! (echo x > /proc/sys/kernel/core_pattern)\n";
    for (number, tree) in [
        Tree::busybox().folder("dev").link("dev/null", "/proc/sysrq-trigger"),
        Tree::busybox().folder("dev").link("dev/null", "/proc/sys/kernel/core_pattern"),
        Tree::busybox().folder("dev").file("dev/null", ""),
        Tree::busybox().link("dev", "/proc"),
    ]
    .into_iter()
    .enumerate()
    {
        attack.image("hostile", tree);
        let said = attack.build(&format!("FROM hostile\n{check}"), &["--no-cache"]);
        if said.code == 0 {
            said.told(" 0");
        } else {
            assert_eq!(number, 3, "{}", said.err);
            said.refused("/dev of the image is no directory");
        }
    }
}

/// V16: no console or terminal of the host is put over what the image has there.
#[test]
fn v16_consoles_are_not_bound_over_links() {
    let attack = Attack::new();
    let host = attack.sentinel.path();
    for name in ["dev/console", "dev/ptmx", "dev/pts/0", "dev/tty"] {
        let tree = Tree::busybox().folder("dev").folder("dev/pts");
        attack.image("hostile", tree.link(name, &format!("{host}/f")));
        let step = format!("! test -e /dev/console && ! readlink /{name} | grep {host}");
        attack.build(&format!("FROM hostile\nRUN {step}\n"), &["--no-cache"]).ok();
    }
}

/// V17: nothing takes the place of /proc and /sys: neither the image nor a mount.
#[test]
fn v17_proc_is_the_kernels() {
    let attack = Attack::new();
    let real =
        "RUN grep -q ' /proc proc ' /proc/mounts && ! (echo x > /proc/sys/kernel/hostname)\n";
    attack.image("link", Tree::busybox().link("proc", &attack.sentinel.path()));
    attack.build(&format!("FROM link\n{real}"), &[]).refused("/proc of the image is no directory");
    let full = Tree::busybox().folder("proc").folder("proc/self").file("proc/self/attr", "x");
    attack.image("full", full.file("proc/mounts", "image").link("proc/sys", "/tmp"));
    attack.build(&format!("FROM full\nVOLUME /proc\n{real}"), &[]).ok();
    for target in ["/proc", "/proc/self/attr", "/proc/sys", "/sys", "/dev", "/", "/x/../proc"] {
        for kind in ["cache", "tmpfs", "bind,from=busybox"] {
            let text = format!("FROM busybox\nRUN --mount=type={kind},target={target} true\n");
            let said = attack.build(&text, &[]);
            assert_eq!(said.code, 1, "{kind} at {target}: {}", said.err);
        }
    }
}

/// V18: targets of mounts and the standard streams' device resolve inside the image.
#[test]
fn v18_mount_targets_stay_in_the_image() {
    let attack = Attack::new();
    let host = attack.sentinel.path();
    let trees = [
        ("dev", Tree::busybox().link("dev", "/tmp").folder("tmp")),
        ("sys", Tree::busybox().link("sys", "/etc").folder("etc")),
        ("dev", Tree::busybox().link("dev", &host)),
        ("sys", Tree::busybox().file("sys", "")),
    ];
    for (name, tree) in trees {
        attack.image("hostile", tree);
        let said = attack.build("FROM hostile\nRUN true\n", &["--no-cache"]);
        said.refused(&format!("/{name} of the image is no directory"));
    }
    let tree = Tree::busybox().folder("dev").file("dev/null", "image").link("link", "/");
    attack.image("hostile", tree.link("host", &host).link("up", "../../../../../../../tmp"));
    for target in ["/link/x", "/host/sub", "/host/new", "/up/x", "/link/link/host/f"] {
        for kind in ["tmpfs", "cache", "bind,from=busybox,rw"] {
            let step = format!("echo x > {target}/made; cat /dev/null; true");
            let text = format!("FROM hostile\nRUN --mount=type={kind},target={target} {step}\n");
            attack.build(&text, &[]);
        }
    }
}
