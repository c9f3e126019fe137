//! The way from a step to this machine's services: `--add-host NAME:host-gateway`.

use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};

use crate::env::{Said, World};

/// The address that this machine has to the outside.
fn outer() -> IpAddr {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bound");
    socket.connect((Ipv4Addr::new(203, 0, 113, 1), 9)).expect("a route to anywhere");
    socket.local_addr().expect("an address").ip()
}

/// A service that accepts and closes; gives its port.
fn service(address: IpAddr) -> u16 {
    let listener = TcpListener::bind((address, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    port
}

fn build(run: &str, options: &[&str]) -> Said {
    let world = World::new();
    world.busybox().file("Dockerfile", &format!("FROM busybox\nRUN {run}\n"));
    world.build(options)
}

const GATEWAY: [&str; 2] = ["--add-host", "machine:host-gateway"];

#[test]
fn the_machine_is_reached_but_not_its_loopback() {
    let world = World::new();
    let apart = world.lacks("network").is_none();
    let (open, local) = (service(outer()), service(Ipv4Addr::LOCALHOST.into()));
    let reach = |port: u16| format!("busybox nc -w 2 machine {port} </dev/null");
    if !apart {
        // Shared, as the build says: the services are where they are for the machine itself.
        build(&reach(local), &GATEWAY).ok();
        return;
    }
    build(&reach(open), &GATEWAY).ok();
    let closed = build(&format!("! {} && echo no way", reach(local)), &GATEWAY).ok();
    assert!(closed.err.contains("no way"), "{}", closed.err);
    let loopback = format!("! busybox nc -w 2 127.0.0.1 {local} </dev/null && echo no way");
    build(&loopback, &GATEWAY).ok();
    // Nobody asked for a way.
    build(&format!("! busybox nc -w 2 {} {open} </dev/null", outer()), &[]).ok();
}

#[test]
fn other_networks_have_their_own_gateway() {
    let host = ["--network", "host", "--allow", "network.host"];
    let local = service(Ipv4Addr::LOCALHOST.into());
    let reach = format!("busybox nc -w 2 machine {local} </dev/null");
    build(&reach, &[&host[..], &GATEWAY].concat()).ok();
    build("! grep machine /etc/hosts", &[&["--network", "none"][..], &GATEWAY].concat()).ok();
}

/// The address is in no key: another machine, or another network, uses the same layers.
#[test]
fn the_gateway_is_in_no_key() {
    let world = World::new();
    world.busybox().file("Dockerfile", "FROM busybox\nRUN grep -c machine /etc/hosts\n");
    world.build(&GATEWAY).ok();
    let again = world.build(&["--add-host", "machine:192.0.2.77"]).ok();
    assert!(again.err.contains("CACHED") && !again.err.contains("DONE"), "{}", again.err);
}
