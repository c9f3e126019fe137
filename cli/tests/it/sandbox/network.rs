//! X04, V23: networks of steps.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use crate::attack::Attack;
use crate::hostile::Tree;
use crate::probe;

/// X04: what carries a step's network ends with the build.
#[test]
fn x04_no_network_is_left() {
    let attack = Attack::new();
    attack.build("FROM busybox\nRUN true\n", &["--network=default"]).ok();
}

/// V23: the default network is not the host's, so its abstract sockets are out of reach.
#[test]
fn v23_the_default_network_is_the_steps_own() {
    let attack = Attack::new();
    let tree = Tree::busybox().folder("etc").program("bin/probe", &probe::program());
    attack.image("probe", tree.file("etc/passwd", "root:x:0:0::/root:/bin/sh\n"));
    let name = format!("kiln-default-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let _listener = UnixListener::bind_addr(&address).expect("bound");
    let text = format!("FROM probe\nRUN probe connect {name}\n");
    let built = attack.build(&text, &["--network=default"]).ok();
    if attack.world.lacks("network").is_some() {
        assert!(built.err.contains("note: steps share this machine's network"), "{}", built.err);
    } else {
        built.told(" connect: ECONNREFUSED");
    }
}
