//! X11 to X16: what steps do to their file system.

use std::fs;

use crate::attack::{Attack, QUIET};
use crate::env::{Said, text, tool};
use crate::hostile::Tree;
use crate::probe;

/// X11: a step that fills the disk fails, says so, and its space is free at once.
#[test]
fn x11_a_full_disk_is_told_and_freed() {
    let attack = Attack::new();
    let write =
        |megabytes| format!("FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count={megabytes}\n");
    attack.world.file("fill/Dockerfile", &write(200)).file("fit/Dockerfile", &write(20));
    let script = "mount -t tmpfs -o size=48m none store && \"$@\" import image.tar busybox && \
        ! \"$@\" build --progress plain --network=none ctx/fill && \
        exec \"$@\" build --progress plain --network=none ctx/fit";
    let mut command = attack.world.started_by("unshare", &["-m", "sh", "-ec", script, "sh"]);
    let said = attack.checked(&mut command).ok();
    assert!(said.err.contains("No space left on device"), "{}", said.err);
    assert!(said.err.contains("did not complete successfully"), "{}", said.err);
}

/// X12: a step can remove everything it sees, and that is its own.
#[test]
fn x12_a_step_removes_its_own_files_only() {
    let attack = Attack::new();
    let text = "FROM busybox AS kept\nRUN --mount=type=cache,id=kept,target=/c echo kept > /c/f\n\
        FROM busybox AS gone\nCOPY --from=kept /etc /copied\nRUN busybox rm -rf /bin /etc /copied /dev /proc /sys /tmp /root; true\n\
        FROM busybox\nCOPY --from=gone / /gone/\n\
        RUN --mount=type=cache,id=kept,target=/c cat /c/f && test -s /etc/hosts && test -e /etc/resolv.conf && ! test -e /gone/bin\n";
    let hosts = fs::read("/etc/hosts").expect("readable");
    attack.build(text, &[]).ok().told(" kept");
    assert_eq!(hosts, fs::read("/etc/hosts").expect("readable"));
}

/// X13: trees that are hard to remove make a layer, and are removed.
#[test]
fn x13_difficult_trees_are_stored_and_removed() {
    let attack = Attack::new();
    let tree = Tree::busybox().folder("etc").program("bin/probe", &probe::program());
    attack.image("probe", tree.file("etc/passwd", "root:x:0:0::/:/bin/sh\n"));
    let name = "n".repeat(255);
    let name_step = format!("touch /{name} && ! busybox chattr +i /{name}");
    for (step, tier) in [
        (name_step.as_str(), "auto"),
        (name_step.as_str(), "ranges"),
        ("mkdir -p /d/e && touch /d/e/f && chmod 000 /d/e /d /", "auto"),
        ("mkdir -p /d/e && touch /d/e/f && chmod 000 /d/e /d /", "ranges"),
        ("probe many /many 3000", "auto"),
        ("mkdir /deep && cd /deep && probe deep 5000", "auto"),
        ("mkdir /deep && cd /deep && probe deep 1000", "ranges"),
        ("mkdir /deep && cd /deep && probe deep 5000 && false", "auto"),
        ("mkdir /deep && cd /deep && probe deep 1000 && false", "ranges"),
    ] {
        let text = format!("FROM probe\nRUN {step}\n");
        let said = attack.build(&text, &["--no-cache", "--isolation", tier]);
        assert_eq!(said.code, i32::from(step.ends_with("false")), "{tier}: {}", said.err);
    }
    attack.checked(attack.world.command().args(["rmi", "probe"])).ok();
    attack.checked(attack.world.command().args(["prune", "--all"])).ok();
    let left = crate::env::files(&attack.world.path("store/layers"));
    assert!(left.is_empty(), "{} files are left", left.len());
}

/// X14: what is mounted in a step cannot be moved or opened, and its mount points are in no layer.
#[test]
fn x14_mounts_of_a_step_stay() {
    let attack = Attack::new();
    attack.image("bare", Tree::busybox());
    let mut steps = String::from("FROM bare\n");
    for command in [
        "mv /etc/resolv.conf /x",
        "rm /etc/hosts",
        "busybox umount /etc/resolv.conf",
        "busybox umount -l /proc",
        "busybox umount /dev",
        "busybox umount /proc/sys",
        "busybox mount -o remount,rw /proc/sys",
        "busybox mount -o remount,rw /sys",
        "busybox mount -o remount,bind,rw /etc/hosts",
        "busybox mount -t proc proc /proc",
        "echo x > /etc/hosts",
    ] {
        steps.push_str(&format!("RUN ! {{ {command}; }}\n"));
    }
    steps.push_str("RUN touch /made\n");
    attack.build(&steps, &["-o", "type=tar,dest=out.tar"]).ok();
    let listed = tool("tar", &["-tf", &text(&attack.world.path("out.tar"))]);
    let known = |name: &str| ["bin/", "made"].iter().any(|known| name.starts_with(known));
    let more: Vec<_> = listed
        .lines()
        .map(|name| name.trim_start_matches("./"))
        .filter(|name| !name.is_empty() && !known(name))
        .collect();
    assert!(more.is_empty(), "{more:?}");
    assert!(listed.contains("made"));
}

/// X15: no step can make a file that others take for a deletion.
#[test]
fn x15_whiteouts_are_not_smuggled() {
    let attack = Attack::new();
    let tree = Tree::busybox().folder("etc").program("bin/probe", &probe::program());
    let tree = tree.file("etc/passwd", "root:x:0:0::/:/bin/sh\n").folder("keep").folder("keep/d");
    attack.image("keep", tree.file("keep/a", "a").file("keep/d/b", "b"));
    for trap in [
        "touch /keep/.wh.a",
        "mkdir /keep/.wh.d",
        "touch /keep/d/.wh..wh..opq",
        "mkdir -p /new/.wh..wh.plnk",
        "probe whiteout /keep/w; ln -f /keep/w /keep/a; mv /keep/w /keep/a",
        "probe attribute /keep/d trusted.overlay.opaque",
        "probe attribute /keep/d user.overlay.opaque",
        "probe attribute /keep/d user.overlay.whiteout; probe attribute /keep/d user.overlay.redirect",
    ] {
        let replaced = trap.contains("whiteout /keep/w");
        let step = format!("FROM keep\nRUN {trap}; true\n");
        let same =
            attack.build(&format!("{step}RUN cat /keep/d/b\n"), &["--no-cache", "-o", "out"]);
        let said = attack.build(&step, &["--no-cache", "-o", "type=oci,dest=image,tar=false"]);
        if said.code != 0 {
            said.refused("names that begin with `.wh.` mean deletions");
            assert!(same.code == 0 && trap.contains(".wh."), "{trap}: {}", same.err);
            continue;
        }
        let named = format!("image=oci-layout://{}", text(&attack.world.path("image")));
        let other = "FROM image\nRUN cat /keep/d/b && ls -l /keep /keep/d\nRUN cat /keep/a\n";
        let read = attack.build(other, &["--no-cache", "--build-context", &named]);
        assert!(replaced || read.code == 0, "{trap}: {}", read.err);
        read.told(" b");
        fs::remove_dir_all(attack.world.path("image")).expect("removed");
    }
}

/// What an image may have at a place that steps need.
fn odd(tree: Tree, path: &str, kind: usize, host: &str) -> Tree {
    match kind {
        0 => tree.link(path, "/"),
        1 => tree.link(path, host),
        2 => tree.link(path, "/proc/self/root"),
        3 => tree.link(path, "/dangling/link"),
        4 => tree.link(path, &format!("/{path}")),
        5 => tree.file(path, "a file"),
        6 => tree.fifo(path),
        _ => tree.device(path),
    }
}

/// One row of the matrix: an odd thing at each place.
fn row(kinds: std::ops::Range<usize>) {
    let attack = Attack::new();
    let host = attack.sentinel.path();
    for path in ["dev", "proc", "sys", "etc", "tmp", "dev/null", "etc/passwd", "bin/sh", "run"] {
        for kind in kinds.clone() {
            let mut tree = Tree::busybox_without_shell();
            if path != "bin/sh" {
                tree = tree.link("bin/sh", "busybox");
            }
            if let Some((folder, _)) = path.split_once('/').filter(|(folder, _)| *folder != "bin") {
                tree = tree.folder(folder);
            }
            attack.image("odd", odd(tree, path, kind, &host));
            let text = "FROM odd\nRUN echo x > /x; echo x > /tmp/x; echo x > /etc/x; true\n";
            let said: Said = attack.build(text, &["--no-cache"]);
            let clear = ["is no directory", "cannot set up the step", "did not complete"];
            let is_clear = said.code == 0 || clear.iter().any(|part| said.err.contains(part));
            assert!(is_clear, "{path}, kind {kind}: {}", said.err);
        }
    }
}

/// X16: images with odd things where steps need folders, first half of the matrix.
#[test]
fn x16_odd_links_in_images() {
    row(0..4);
}

/// X16: the second half.
#[test]
fn x16_odd_files_in_images() {
    row(4..8);
}

/// X16: rootless as well; one row is enough, the code is the same.
#[test]
fn x16_odd_links_in_images_without_root() {
    let attack = Attack::new();
    let host = attack.sentinel.path();
    for path in ["dev", "proc", "sys", "etc"] {
        let tree = Tree::busybox().link(path, &host);
        fs::write(attack.world.path("image.tar"), tree.archive()).expect("written");
        let mut command = attack.world.command();
        command.args(["--isolation", "ranges", "import", "image.tar", "odd"]);
        attack.checked(&mut command).ok();
        attack.world.file("Dockerfile", "FROM odd\nRUN echo x > /etc/x\n");
        let mut command = attack.world.command();
        command.args(["--isolation", "ranges", "build", "--no-cache", QUIET, "ctx"]);
        attack.checked(&mut command);
    }
}
