//! Steps in a container that may neither make namespaces nor mount (the defaults of Docker and of
//! Kubernetes): in a chroot, and the layers are the usual ones.

use std::fs;

use crate::env::{Said, World, said, text};
use crate::examples::{base, podman};

/// What Docker's default profile refuses to root without CAP_SYS_ADMIN, of what a sandbox needs.
const PROFILE: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ERRNO",
    "errnoRet": 1, "names": ["unshare", "setns", "mount", "umount2", "pivot_root", "fsopen", "fsmount",
    "open_tree", "move_mount", "mount_setattr"]}]}"#;

const DOCKERFILE: &str = "FROM busybox\n\
    COPY a /a\n\
    RUN --mount=type=cache,target=/cache --mount=type=secret,id=s --mount=type=tmpfs,target=/t \
    cat /a /run/secrets/s && echo kept > /cache/k && touch /t/x && echo made > /made && rm /tmp/old\n\
    RUN --mount=type=cache,target=/cache cat /cache/k && ! ls /t && ! ls /run && busybox chown 5:6 /a\n\
    RUN (busybox setsid sleep 1234 & ) && ! ls /proc/1\n\
    USER 5:6\n\
    RUN ! touch /forbidden\n";

const EPOCH: &str = "SOURCE_DATE_EPOCH=1700000000";

/// A script in a container of podman, with the context in /ctx and an image in /image.tar.
fn in_container(world: &World, script: &str) -> Said {
    fs::write(world.path("profile.json"), PROFILE).expect("written");
    let mount = |from: String, to: &str| format!("{from}:{to}:ro");
    let volumes = [
        mount(text(&crate::env::kiln()), "/usr/local/bin/kiln"),
        mount(text(&world.path("busybox.tar")), "/image.tar"),
        mount(text(&world.path("ctx")), "/ctx"),
    ];
    let profile = format!("seccomp={}", text(&world.path("profile.json")));
    podman(world, &["import", &text(&base()), "base"]).ok();
    let mut args = vec!["run", "--rm", "--network", "host", "-e", "KILN_ROOT=/store"];
    // podman's own limits need a right that the test may lack.
    args.extend(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
    args.extend(["--security-opt", &profile]);
    args.extend(volumes.iter().flat_map(|volume| ["-v", volume]));
    args.extend(["base", "sh", "-c", script]);
    podman(world, &args)
}

fn diff_ids(inspected: &str) -> serde_json::Value {
    let document: serde_json::Value = serde_json::from_str(inspected).expect("JSON");
    let ids = document["config"]["rootfs"]["diff_ids"].clone();
    assert!(ids.as_array().is_some_and(|ids| ids.len() == 6), "{ids}");
    ids
}

#[test]
fn a_container_without_namespaces_builds_the_same_layers() {
    let world = World::new();
    world.busybox().file("Dockerfile", DOCKERFILE).file("a", "from the context\n");
    fs::write(world.path("busybox/tmp/old"), "old").expect("written");
    let tar = ["-C", "busybox", "--mtime=@0", "--sort=name", "-cf", "busybox.tar", "."];
    let mut command = std::process::Command::new("tar");
    said(&command.args(tar).current_dir(world.path(".")).output().expect("tar starts")).ok();
    world.kiln(&["import", "busybox.tar", "busybox"]).ok();
    fs::write(world.path("secret"), "whispered\n").expect("written");
    let options = ["-t", "r", "--build-arg", EPOCH, "--secret", "id=s,src=secret"];
    // The one step that looks for processes sees none of them here either, but it has a /proc.
    let usual = DOCKERFILE.replace(" && ! ls /proc/1", "");
    world.file("Dockerfile", &usual);
    world.build(&options).ok();
    let usual = diff_ids(&world.kiln(&["inspect", "r"]).ok().out);
    world.file("Dockerfile", DOCKERFILE);
    let script = format!(
        "echo whispered > secret; kiln import /image.tar busybox >&2 && \
         kiln build --progress plain {} /ctx && kiln inspect r; \
         cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep [1]234' >&2",
        options.join(" ")
    );
    let built = in_container(&world, &script);
    assert!(built.err.ends_with("0\n"), "nothing outlives a step:\n{}", built.err);
    assert_eq!(built.err.matches("note: steps are in a chroot alone").count(), 1, "{}", built.err);
    assert!(built.err.contains("whispered") && built.err.contains("kept"), "{}", built.err);
    assert_eq!(diff_ids(&built.out), usual);
}

#[test]
fn a_chroot_is_not_left_and_not_taken_for_more() {
    let world = World::new();
    world.busybox().file("Dockerfile", "FROM busybox\nRUN --network=none true\n").file(
        "escape",
        "FROM busybox\n\
         RUN ! busybox chroot / true && ! busybox mknod /disk b 8 0 && ! ls /store && \
         busybox grep -h Cap /proc/self/status || echo contained\n",
    );
    let script = "kiln import /image.tar busybox >&2; \
        kiln build --progress plain -f /ctx/escape /ctx; \
        kiln build --progress plain /ctx; \
        kiln --isolation ranges build /ctx; \
        kiln --snapshotter overlay build --no-cache -f /ctx/escape /ctx; \
        kiln run -v /etc:/etc2 busybox true";
    let said = in_container(&world, script);
    assert!(said.err.contains("contained"), "{}", said.err);
    for refused in [
        "a step without network needs a network namespace, which --isolation=chroot has not",
        "--isolation=ranges is not possible here: it would be chroot",
        "--snapshotter=overlay is not possible here",
        "a writable folder of the machine needs a mount, which --isolation=chroot has not",
    ] {
        assert!(said.err.contains(refused), "{refused}:\n{}", said.err);
    }
}
