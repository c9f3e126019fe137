//! Git repositories over ssh, of a real server on loopback.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use crate::env::{Said, World, text, tool};
use crate::remote::repository;

struct Server {
    process: Child,
    port: u16,
}

impl Server {
    /// A server that lets the key `client` of the world in, as root, whose home is elsewhere for it.
    fn start(world: &World) -> Self {
        for name in ["client", "stranger"] {
            let key = text(&world.path(name));
            tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "kiln", "-f", &key]);
        }
        fs::create_dir_all(world.path("home/.ssh")).expect("made");
        fs::copy(world.path("client.pub"), world.path("home/.ssh/authorized_keys"))
            .expect("copied");
        tool("dropbearkey", &["-t", "ed25519", "-f", &text(&world.path("host"))]);
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        let port = port.port();
        let script = "mount --bind home \"$(getent passwd 0 | cut -d: -f6)\" && \
             exec dropbear -F -s -r host -P pid -p \"127.0.0.1:$1\"";
        let process = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
            .arg(port.to_string())
            .current_dir(world.path("."))
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("unshare starts");
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Self { process, port }
    }

    /// The address of the world's repository.
    fn url(&self, world: &World) -> String {
        format!("ssh://root@127.0.0.1:{}{}", self.port, text(&world.path("r.git")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().and_then(|()| self.process.wait()).expect("ended");
    }
}

fn build(world: &World, key: &str, more: &[&str]) -> Said {
    let handed = format!("default={}", text(&world.path(key)));
    world.kiln(&[&["build", "--progress", "plain", "-o", "out", "--ssh", &handed], more].concat())
}

#[test]
fn repositories_come_over_ssh() {
    let world = World::new();
    repository(&world);
    let server = Server::start(&world);
    let url = server.url(&world);
    let read = |file: &str| fs::read_to_string(world.path("out").join(file)).expect(file);
    build(&world, "client", &[&format!("{url}#v1")]).ok();
    assert_eq!(read("f"), "one");
    world.file("Dockerfile", &format!("FROM scratch\nADD {url}#main:sub /a\n"));
    build(&world, "client", &["ctx"]).ok();
    assert_eq!(read("a/f"), "two");
}

#[test]
fn strangers_and_other_servers_are_refused() {
    let world = World::new();
    repository(&world);
    let server = Server::start(&world);
    let url = server.url(&world);
    let refused = build(&world, "stranger", &[&url]);
    assert_ne!(refused.code, 0);
    assert!(refused.err.contains("Permission denied (publickey"), "{}", refused.err);
    assert!(refused.err.contains("--ssh default"), "{}", refused.err);
    // The user knows the server by another key.
    let known = fs::read_to_string(world.path("stranger.pub")).expect("made");
    fs::create_dir_all(world.path(".ssh")).expect("made");
    let line = format!("[127.0.0.1]:{} {known}", server.port);
    fs::write(world.path(".ssh/known_hosts"), line).expect("written");
    let refused = build(&world, "client", &[&url]);
    assert_ne!(refused.code, 0);
    assert!(refused.err.contains("Host key verification failed"), "{}", refused.err);
}
