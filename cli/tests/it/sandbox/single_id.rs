//! X13, X16 with the one id of a user who has no ranges.

use std::fs;

use crate::attack::{Attack, QUIET};
use crate::hostile::Tree;

/// Imports an image and builds on it, with a single id.
fn build(attack: &Attack, tree: Tree, step: &str) -> i32 {
    fs::write(attack.world.path("image.tar"), tree.archive()).expect("written");
    let mut command = attack.world.command();
    command.args(["--isolation", "single-id", "import", "image.tar", "odd"]);
    attack.checked(&mut command).ok();
    attack.world.file("Dockerfile", &format!("FROM odd\nRUN {step}\n"));
    let mut command = attack.world.command();
    command.args(["--isolation", "single-id", "build", "--no-cache", QUIET, "ctx"]);
    attack.checked(&mut command).code
}

/// X13: what nobody may enter is stored and removed without ranges of ids as well.
#[test]
fn x13_difficult_trees_with_a_single_id() {
    let attack = Attack::new();
    let tree = Tree::busybox().folder("etc").file("etc/passwd", "root:x:0:0::/:/bin/sh\n");
    let step = "mkdir -p /d/e && touch /d/e/f && chmod 000 /d/e /d /";
    assert_eq!(build(&attack, tree, step), 0);
    let mut command = attack.world.command();
    attack.checked(command.args(["--isolation", "single-id", "rmi", "odd"])).ok();
    let mut command = attack.world.command();
    attack.checked(command.args(["--isolation", "single-id", "prune", "--all"])).ok();
    assert!(crate::env::files(&attack.world.path("store/layers")).is_empty());
}

/// X16: odd links in an image lead nowhere either.
#[test]
fn x16_odd_links_with_a_single_id() {
    let attack = Attack::new();
    for path in ["dev", "proc", "sys", "etc"] {
        let tree = Tree::busybox().link(path, &attack.sentinel.path());
        build(&attack, tree, "echo x > /etc/x");
    }
}
