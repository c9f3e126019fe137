//! Every kind of output, read by the tools that users read them with.

use std::fs;

use crate::env::{World, text, tool};

fn built() -> World {
    let world = World::new();
    let file = "FROM busybox\nRUN mkdir /d && echo hello > /d/f\nCMD [\"cat\", \"/d/f\"]\n";
    world.busybox().file("Dockerfile", file);
    world
}

#[test]
fn several_outputs_at_once() {
    let world = built();
    let outputs = [
        "-o",
        "type=oci,dest=oci.tar",
        "-o",
        "type=oci,tar=false,dest=layout",
        "-o",
        "type=docker,dest=docker.tar",
        "-o",
        "files",
        "-o",
        "type=tar,dest=files.tar",
        "-o",
        "type=oci,dest=zstd.tar,compression=zstd",
        "-t",
        "app:1",
    ];
    world.build(&outputs).ok();
    assert_eq!(fs::read_to_string(world.path("files/d/f")).expect("local output"), "hello\n");
    let names = tool("tar", &["-tf", &text(&world.path("files.tar"))]);
    assert!(names.contains("d/f"), "{names}");
    for source in [
        format!("oci-archive:{}", text(&world.path("oci.tar"))),
        format!("docker-archive:{}", text(&world.path("docker.tar"))),
        format!("oci-archive:{}", text(&world.path("zstd.tar"))),
    ] {
        let facts = tool("skopeo", &["inspect", "--config", &source]);
        assert!(facts.contains("/d/f"), "{source}: {facts}");
    }
    let bundle = text(&world.path("bundle"));
    let image = format!("{}:1", text(&world.path("layout")));
    tool("umoci", &["unpack", "--image", &image, &bundle]);
    assert_eq!(fs::read_to_string(world.path("bundle/rootfs/d/f")).expect("unpacked"), "hello\n");
    let images = world.kiln(&["images"]).ok();
    assert!(images.out.contains("app:1") && images.out.contains("busybox"), "{}", images.out);
}

#[test]
fn the_store_lists_shows_renames_and_forgets() {
    let world = built();
    world.build(&["-t", "app:1"]).ok();
    let history = world.kiln(&["history", "app:1"]).ok();
    assert!(history.out.contains("CMD [\"cat\" \"/d/f\"]"), "{}", history.out);
    let inspected = world.kiln(&["inspect", "app:1"]).ok();
    let document: serde_json::Value = serde_json::from_str(&inspected.out).expect("JSON");
    assert_eq!(document["config"]["config"]["Cmd"][0], "cat");
    world.kiln(&["tag", "app:1", "app:2"]).ok();
    world.kiln(&["rmi", "app:1"]).ok();
    let gone = world.kiln(&["inspect", "app:1"]);
    assert!(gone.code == 1 && gone.err.contains("no image"), "{}", gone.err);
    world.kiln(&["prune", "--all"]).ok();
    world.kiln(&["inspect", "app:2"]).ok();
    world.file("Dockerfile", "FROM app:2\nRUN cat /d/f\n");
    let on_top = world.build(&[]).ok();
    assert!(on_top.err.contains(" hello"), "{}", on_top.err);
}

#[test]
fn nothing_partial_is_left_by_a_failing_build() {
    let world = built();
    world.file("Dockerfile", "FROM busybox\nRUN false\n");
    let failed = world.build(&["-o", "type=oci,dest=out.tar", "--iidfile", "id"]);
    assert_eq!(failed.code, 1);
    assert!(!world.path("out.tar").exists() && !world.path("id").exists());
}
