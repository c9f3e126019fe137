//! A real registry on loopback: push, build on what was pushed, pull.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::env::{World, text};

pub(crate) struct Registry {
    child: Child,
    pub(crate) address: String,
}

impl Registry {
    pub(crate) fn start(world: &World) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("an address").to_string();
        drop(free);
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            text(&world.path("registry"))
        );
        fs::write(world.path("registry.yml"), config).expect("written");
        let child = Command::new("docker-registry")
            .args(["serve", &text(&world.path("registry.yml"))])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed (scripts/setup.sh)");
        let registry = Self { child, address };
        for _ in 0..200 {
            if TcpStream::connect(&registry.address).is_ok() {
                return registry;
            }
            sleep(Duration::from_millis(50));
        }
        panic!("the registry did not start");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }
}

#[test]
fn what_is_pushed_can_be_built_on_and_pulled() {
    let world = World::new();
    let registry = Registry::start(&world);
    let name = format!("{}/team/app:1", registry.address);
    world.busybox().file("Dockerfile", "FROM busybox\nRUN echo first > /f\n");
    world.build(&["--push", "-t", &name]).ok();

    let other = World::new();
    other.file("Dockerfile", &format!("FROM {name}\nRUN cat /f\n"));
    let built = other.build(&["-t", "mine"]).ok();
    assert!(built.err.contains(" first"), "{}", built.err);
    other.kiln(&["pull", &name]).ok();
    let copy = format!("{}/team/copy:2", registry.address);
    other.kiln(&["tag", &name, &copy]).ok();
    other.kiln(&["push", &copy]).ok();
    drop(registry);

    let offline = other.build(&[]).ok();
    assert!(offline.err.contains("CACHED"), "no request where all is known: {}", offline.err);
    let gone = World::new();
    gone.file("Dockerfile", &format!("FROM {name}\n"));
    let failed = gone.build(&[]);
    assert_eq!(failed.code, 3, "{}", failed.err);
    assert!(failed.err.contains("Dockerfile:1"), "{}", failed.err);
}
