//! `--snapshotter`: copies give the layers that overlay gives, also where overlay cannot be mounted.

use std::fs;
use std::process::Command;

use crate::env::{Said, World, said, text, tool};

/// What steps do to files that a lower layer has; each is a RUN on the one before.
const CHANGES: &[&str] = &[
    "busybox true",
    "echo more >> modified; echo new > new",
    "rm deleted; rm -r tree/deep",
    "rm file && mkdir file && touch file/inside",
    "rm -r folder && echo a file > folder",
    "busybox chmod 600 mode && busybox chmod 700 mode-folder",
    "busybox chmod 644 untouched",
    "busybox chown 5:6 owner && busybox chown 7:8 owner-folder",
    "busybox mv renamed other-name",
    "busybox ln linked second-name && echo x >> second-name",
    "echo only one >> twin-a",
    "busybox ln -s nowhere dangling && rm link && busybox ln -s modified link",
    "busybox chmod 600 attributes && echo x >> attributes",
    "busybox chmod 4755 setuid && busybox chmod 2755 setgid-folder && busybox chmod 1777 sticky",
    "mkdir empty empty/in-empty",
    "touch -d @1000000000 times && touch -d @1100000000 times-folder",
    "rm -r again && mkdir again && echo new > again/new",
    "rm -r again && mkdir again && echo newer > again/new",
    "touch passing/x && rm passing/x",
    "busybox mkfifo pipe",
    "rm -r all && mkdir -p all/a/b && rm -r all",
    "mkdir -p /var/x/y && echo y > /var/x/y/z && busybox chown -R 9:9 /var/x",
];

/// An image with everything that the changes need, and hard links and attributes.
fn image(world: &World) {
    world.busybox();
    let data = world.path("busybox/data");
    for folder in [
        "tree/deep/er",
        "folder/in",
        "mode-folder",
        "owner-folder",
        "renamed/a/b",
        "setgid-folder",
        "sticky",
        "times-folder",
        "again",
        "passing",
        "all/old",
    ] {
        fs::create_dir_all(data.join(folder)).expect("made");
        fs::write(data.join(folder).join("old"), folder).expect("written");
    }
    for name in [
        "modified",
        "deleted",
        "file",
        "mode",
        "untouched",
        "owner",
        "linked",
        "twin-a",
        "attributes",
        "setuid",
        "times",
    ] {
        fs::write(data.join(name), name).expect("written");
    }
    fs::hard_link(data.join("twin-a"), data.join("twin-b")).expect("linked");
    std::os::unix::fs::symlink("deleted", data.join("link")).expect("linked");
    let script = "import os, sys\n\
        os.setxattr(sys.argv[1], 'user.kept', b'1')\n\
        os.setxattr(sys.argv[2], 'security.capability', bytes([0, 0, 0, 2, 1] + [0] * 15))\n";
    let (attributes, setuid) = (text(&data.join("attributes")), text(&data.join("setuid")));
    tool("python3", &["-c", script, &attributes, &setuid]);
    let (root, archive) = (text(&world.path("busybox")), text(&world.path("image.tar")));
    let times = ["--mtime=@0", "--sort=name", "--xattrs", "--xattrs-include=*"];
    tool("tar", &[&times[..], &["-C", &root, "-cf", &archive, "."]].concat());
}

/// A build in a store of its own, and the diff ids of its layers.
fn build(world: &World, snapshotter: &str) -> Vec<String> {
    let run = |args: &[&str]| {
        let mut command = world.command();
        command.env("KILN_ROOT", world.path(snapshotter)).env("KILN_SNAPSHOTTER", snapshotter);
        said(&command.args(args).output().expect("kiln starts")).ok()
    };
    run(&["import", "image.tar", "image"]);
    let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=1700000000"];
    run(&[&["build", "--progress", "plain", "-t", "result"], &epoch[..], &["ctx"]].concat());
    diff_ids(&run(&["inspect", "result"]))
}

fn diff_ids(told: &Said) -> Vec<String> {
    let document: serde_json::Value = serde_json::from_str(&told.out).expect("JSON");
    let ids = document["config"]["rootfs"]["diff_ids"].as_array().expect("a list").clone();
    ids.iter().map(|id| id.as_str().expect("text").to_owned()).collect()
}

/// The layers of every change are those that overlay gives.
fn compare(snapshotter: &str) {
    let world = World::new();
    image(&world);
    let steps: Vec<_> = CHANGES.iter().map(|change| format!("RUN {change}\n")).collect();
    let dockerfile = format!("FROM image\nWORKDIR /data\n{}", steps.concat());
    world.file("Dockerfile", &dockerfile);
    let (overlay, other) = (build(&world, "overlay"), build(&world, snapshotter));
    assert_eq!(overlay.len(), other.len());
    assert!(overlay.len() > CHANGES.len(), "a layer for each, and the image's");
    let first = overlay.len() - CHANGES.len();
    let differs = |number: &usize| overlay[first + number] != other[first + number];
    let different: Vec<_> = (0..CHANGES.len()).filter(differs).map(|n| CHANGES[n]).collect();
    assert!(different.is_empty(), "{different:#?}");
}

#[test]
fn copies_give_the_layers_of_overlay() {
    compare("copy");
}

#[test]
fn fuse_overlayfs_gives_the_layers_of_overlay() {
    compare("fuse-overlayfs");
}

/// `kiln ARGS…` with its store on an overlay file system, as the root of most containers is. `hidden` is a program that
/// the machine does not have.
fn on_an_overlay(world: &World, hidden: Option<&str>, args: &[&str]) -> Said {
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir_all(world.path(name)).expect("made");
    }
    let script = "mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay merged && \
         { [ -z \"$1\" ] || mount --bind /dev/null \"$(command -v \"$1\")\"; } && shift && \
         exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    command
        .arg(hidden.unwrap_or_default())
        .arg(crate::env::kiln())
        .args(["--root", "merged/store"]);
    command.args(args).current_dir(world.path(".")).env("HOME", world.path("."));
    said(&command.output().expect("unshare starts"))
}

const DOCKERFILE: &str = "FROM busybox AS tools\nRUN mkdir /tools && echo tool > /tools/t\n\
    FROM busybox\n\
    RUN --mount=type=bind,target=/ctx --mount=type=bind,from=tools,source=/tools,target=/mnt/t,rw \
    cat /ctx/a /mnt/t/t > /both && echo lost > /mnt/t/lost\n\
    RUN --mount=type=cache,target=/cache cat /both && ! test -e /mnt/t/lost && ! test -e /mnt && rm /both && ! test -e /both\n\
    RUN ! test -e /both\n";

#[test]
fn a_store_on_an_overlay_runs_steps_in_copies() {
    let world = World::new();
    world.busybox().file("a", "from the context\n").file("Dockerfile", DOCKERFILE);
    let kiln = |args: &[&str]| on_an_overlay(&world, Some("fuse-overlayfs"), args);
    kiln(&["import", "busybox.tar", "busybox"]).ok();
    let built = kiln(&["build", "--progress", "plain", "ctx"]).ok();
    assert!(built.err.contains("from the context") && built.err.contains("tool"), "{}", built.err);
    let notes = built.err.matches("note: steps run in copies of their files").count();
    assert_eq!(notes, 1, "{}", built.err);
    for named in ["overlay", "fuse-overlayfs"] {
        let refused = kiln(&["--snapshotter", named, "build", "--no-cache", "ctx"]);
        assert_ne!(refused.code, 0);
        let expected = format!("--snapshotter={named} is not possible here");
        assert!(refused.err.contains(&expected), "{}", refused.err);
    }
    let doctor = kiln(&["doctor"]);
    assert!(doctor.out.contains("missing  overlay: steps run in copies"), "{}", doctor.out);
    assert!(doctor.out.contains("apt-get install fuse-overlayfs"), "{}", doctor.out);
}

#[test]
fn a_store_on_an_overlay_runs_steps_by_fuse_overlayfs() {
    let world = World::new();
    image(&world);
    let steps: Vec<_> = CHANGES.iter().map(|change| format!("RUN {change}\n")).collect();
    let dockerfile = format!("FROM image\nWORKDIR /data\n{}", steps.concat());
    world.file("a", "from the context\n").file("Dockerfile", DOCKERFILE);
    world.file("changes.Dockerfile", &dockerfile);
    let kiln = |args: &[&str]| on_an_overlay(&world, None, args).ok();
    kiln(&["import", "busybox.tar", "busybox"]);
    kiln(&["import", "image.tar", "image"]);
    let plain = ["build", "--progress", "plain"];
    let built = kiln(&[&plain[..], &["ctx"]].concat());
    assert!(built.err.contains("from the context") && built.err.contains("tool"), "{}", built.err);
    let notes = built.err.matches("note: steps have their files by fuse-overlayfs").count();
    assert_eq!(notes, 1, "{}", built.err);
    // Deletions have another form in such a store.
    let epoch = ["-f", "ctx/changes.Dockerfile", "--build-arg", "SOURCE_DATE_EPOCH=1700000000"];
    let built = kiln(&[&plain[..], &epoch, &["-t", "result", "ctx"]].concat());
    assert!(!built.err.contains("copies"), "{}", built.err);
    let layers = diff_ids(&kiln(&["inspect", "result"]));
    fs::copy(world.path("ctx/changes.Dockerfile"), world.path("ctx/Dockerfile")).expect("copied");
    assert_eq!(layers, build(&world, "overlay"));
    let fsck = kiln(&["fsck"]);
    assert!(fsck.out.contains("problems: 0"), "{}", fsck.out);
    let doctor = on_an_overlay(&world, None, &["doctor"]);
    assert!(doctor.out.contains("steps have their files by fuse-overlayfs"), "{}", doctor.out);
}

/// What fuse-overlayfs would make otherwise than overlay is made by a copy.
#[test]
fn what_fuse_overlayfs_cannot_is_done_in_copies() {
    let world = World::new();
    world.busybox().file(
        "Dockerfile",
        "FROM busybox\nRUN mkdir /s && busybox chgrp 50 /s && busybox chmod g+s /s && echo made\n\
         RUN mkdir /s/d && touch /s/f\nRUN stat -c '%g %a %n' /s/d /s/f\n",
    );
    on_an_overlay(&world, None, &["import", "busybox.tar", "busybox"]).ok();
    let build = ["build", "--progress", "plain", "ctx"];
    let built = on_an_overlay(&world, None, &build).ok();
    assert!(built.err.contains("loses set-group-ID of directories: s)"), "{}", built.err);
    assert!(
        built.err.contains("50 2755 /s/d") && built.err.contains("50 644 /s/f"),
        "{}",
        built.err
    );
    world.kiln(&["import", "busybox.tar", "busybox"]).ok();
    let named = world.kiln(&[&["--snapshotter", "fuse-overlayfs"][..], &build].concat());
    assert_ne!(named.code, 0);
    assert!(named.err.contains("loses set-group-ID of directories: s"), "{}", named.err);
}
