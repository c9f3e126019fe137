//! RUN --device: devices by the Container Device Interface, behind `--allow`.

use std::fs;

use crate::env::{Said, World, said, text};

const DESCRIPTION: &str = "cdiVersion: 0.6.0
kind: vendor.test/dev
devices:
- name: zero
  containerEdits:
    env: [DEVICE=zero]
    additionalGids: [44]
    deviceNodes:
    - {path: /dev/vendor/zero, hostPath: /dev/zero}
- name: open
  annotations: {org.mobyproject.buildkit.device.autoallow: \"true\", org.mobyproject.buildkit.device.class: any}
  containerEdits:
    env: [OPEN=1]
    mounts:
    - {hostPath: MOUNT, containerPath: /vendor.txt, options: [ro]}
";

fn world() -> World {
    let world = World::new();
    world.busybox();
    fs::create_dir(world.path("cdi")).expect("folder made");
    fs::write(world.path("vendor.txt"), "of the host").expect("file written");
    let description = DESCRIPTION.replace("MOUNT", &text(&world.path("vendor.txt")));
    fs::write(world.path("cdi/vendor.yaml"), description).expect("file written");
    let config = format!("cdi-spec-dirs = [{:?}]\n", text(&world.path("cdi")));
    fs::write(world.path("config.toml"), config).expect("file written");
    world
}

fn build(world: &World, dockerfile: &str, args: &[&str]) -> Said {
    world.file("Dockerfile", dockerfile);
    let mut command = world.command();
    command.env("KILN_CONFIG", world.path("config.toml"));
    command.args(["build", "--progress", "plain", "--no-cache"]).args(args).arg("ctx");
    said(&command.output().expect("starts"))
}

#[test]
fn devices_are_given_where_allowed() {
    let world = world();
    let dockerfile = "FROM busybox\nRUN --device=vendor.test/dev=zero,required \
        test -c /dev/vendor/zero && id -G && echo got $DEVICE\nRUN test ! -e /dev/vendor && ls /dev\n";
    let refused = build(&world, dockerfile, &[]);
    assert!(
        refused.err.contains("device \"vendor.test/dev=zero\" is not allowed"),
        "{}",
        refused.err
    );
    for allow in ["device", "device=vendor.test/dev=zero", "device=vendor.test/dev=*"] {
        let built = build(&world, dockerfile, &["--allow", allow]).ok();
        assert!(built.err.contains("got zero") && built.err.contains("0 44"), "{}", built.err);
    }
    assert_ne!(build(&world, dockerfile, &["--allow", "device=vendor.test/dev=open"]).code, 0);
}

#[test]
fn what_is_not_there_is_left_out_unless_required() {
    let world = world();
    build(&world, "FROM busybox\nRUN --device=vendor.test/dev=none true\n", &[]).ok();
    let failed =
        build(&world, "FROM busybox\nRUN --device=vendor.test/dev=zeor,required true\n", &[]);
    for expect in [
        "required device \"vendor.test/dev=zeor\" is not registered",
        "did you mean vendor.test/dev=zero?",
    ] {
        assert!(failed.err.contains(expect), "{}", failed.err);
    }
    let open =
        build(&world, "FROM busybox\nRUN --device=any cat /vendor.txt && echo $OPEN\n", &[]).ok();
    assert!(open.err.contains("of the host"), "{}", open.err);
}
