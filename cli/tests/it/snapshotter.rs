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
    let told = run(&["inspect", "result"]).out;
    let document: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    let ids = document["config"]["rootfs"]["diff_ids"].as_array().expect("a list").clone();
    ids.iter().map(|id| id.as_str().expect("text").to_owned()).collect()
}

#[test]
fn copies_give_the_layers_of_overlay() {
    let world = World::new();
    image(&world);
    let steps: Vec<_> = CHANGES.iter().map(|change| format!("RUN {change}\n")).collect();
    let dockerfile = format!("FROM image\nWORKDIR /data\n{}", steps.concat());
    world.file("Dockerfile", &dockerfile);
    let (overlay, copy) = (build(&world, "overlay"), build(&world, "copy"));
    assert_eq!(overlay.len(), copy.len());
    assert!(overlay.len() > CHANGES.len(), "a layer for each, and the image's");
    let first = overlay.len() - CHANGES.len();
    for (number, change) in CHANGES.iter().enumerate() {
        let (overlay, copy) = (&overlay[first + number], &copy[first + number]);
        assert_eq!(overlay, copy, "{change}");
    }
}

/// `kiln ARGS…` with its store on an overlay file system, as the root of most containers is.
fn on_an_overlay(world: &World, args: &str) -> Said {
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir_all(world.path(name)).expect("made");
    }
    let script = format!(
        "mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay merged && \
         kiln=$1 && $kiln --root merged/store import busybox.tar busybox && \
         exec $kiln --root merged/store {args}"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
    command.arg(crate::env::kiln()).current_dir(world.path("."));
    command.env("HOME", world.path("."));
    said(&command.output().expect("unshare starts"))
}

#[test]
fn a_store_on_an_overlay_runs_steps_in_copies() {
    let world = World::new();
    world.busybox().file("a", "from the context\n").file(
        "Dockerfile",
        "FROM busybox AS tools\nRUN mkdir /tools && echo tool > /tools/t\n\
         FROM busybox\n\
         RUN --mount=type=bind,target=/ctx --mount=type=bind,from=tools,source=/tools,target=/mnt/t,rw \
         cat /ctx/a /mnt/t/t > /both && echo lost > /mnt/t/lost\n\
         RUN --mount=type=cache,target=/cache cat /both && ! test -e /mnt/t/lost && ! test -e /mnt && rm /both && ! test -e /both\n\
         RUN ! test -e /both\n",
    );
    let built = on_an_overlay(&world, "build --progress plain ctx").ok();
    assert!(built.err.contains("from the context") && built.err.contains("tool"), "{}", built.err);
    let notes = built.err.matches("note: steps run in copies of their files").count();
    assert_eq!(notes, 1, "{}", built.err);
    let named =
        on_an_overlay(&world, "--snapshotter overlay build --progress plain --no-cache ctx");
    assert_ne!(named.code, 0);
    assert!(named.err.contains("--snapshotter=overlay is not possible here"), "{}", named.err);
    let doctor = on_an_overlay(&world, "doctor");
    assert!(doctor.out.contains("missing  overlay: steps run in copies"), "{}", doctor.out);
}
