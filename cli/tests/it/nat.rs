//! Networks of steps on a machine without pasta: what root has by nftables. The machine is a network
//! namespace of the test, with another one as the world outside.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::env::{Said, World, said, tool};

/// Shows no pasta to what it starts; `ip netns exec` gives it mounts of its own.
const HIDE: &str = "for f in /usr/bin/pasta /usr/local/bin/pasta; do \
    [ ! -e $f ] || mount --bind /dev/null $f; done; exec \"$@\"";

const SERVER: &str = "
import socket, sys
server = socket.create_server(('0.0.0.0', 7001))
print('ready', flush=True)
while True:
    client, (address, _) = server.accept()
    client.sendall((sys.argv[1] + ' ' + address + '\\n').encode())
    client.close()
";

const MACHINE: &str = "198.51.100.1";
const OUTSIDE: &str = "198.51.100.2";

/// Two network namespaces that are connected, each with a service at port 7001.
struct Machine {
    names: [String; 2],
    servers: Vec<Child>,
}

impl Machine {
    fn new(name: &str) -> Self {
        let id = std::process::id();
        let names = ["machine", "outside"].map(|side| format!("kiln-it-{name}-{side}-{id}"));
        for name in &names {
            tool("ip", &["netns", "add", name]);
            // New network namespaces have what the machine has; Docker turns it on.
            tool(
                "ip",
                &["netns", "exec", name, "sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward"],
            );
        }
        let [inner, outer] = &names;
        let pair = ["link", "add", "out", "netns", inner, "type", "veth", "peer", "name", "in"];
        tool("ip", &[&pair[..], &["netns", outer]].concat());
        for (name, device, address) in [(inner, "out", MACHINE), (outer, "in", OUTSIDE)] {
            tool("ip", &["-n", name, "address", "add", &format!("{address}/24"), "dev", device]);
            tool("ip", &["-n", name, "link", "set", device, "up"]);
            tool("ip", &["-n", name, "link", "set", "lo", "up"]);
        }
        tool("ip", &["-n", inner, "route", "add", "default", "via", OUTSIDE]);
        let mut machine = Self { names, servers: Vec::new() };
        machine.serve(0);
        machine.serve(1);
        machine
    }

    fn serve(&mut self, side: usize) {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[side], "python3", "-c", SERVER]);
        command.arg(["machine", "outside"][side]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut server = command.spawn().expect("ip is installed (scripts/setup.sh)");
        let told = server.stdout.take().expect("a pipe");
        self.servers.push(server);
        BufReader::new(told).read_line(&mut String::new()).expect("ready");
    }

    /// `kiln build ARGS… ctx` on the machine.
    fn build(&self, world: &World, args: &[&str]) -> Command {
        let start = ["netns", "exec", &self.names[0], "sh", "-c", HIDE, "sh"];
        let mut command = world.started_by("ip", &start);
        command.args(["build", "--progress", "plain"]).args(args).arg("ctx");
        command
    }

    fn ask(&self, program: &str, args: &[&str]) -> String {
        tool("ip", &[&["netns", "exec", &self.names[0], program], args].concat())
    }

    /// The tables of rules that there are.
    fn tables(&self) -> Vec<String> {
        let tables = self.ask("nft", &["list", "tables"]);
        tables.lines().map(|line| line.replace("table inet ", "")).collect()
    }

    /// Waits until nothing is left: what ends a network outlives the builder for a moment.
    fn is_clean(&self) {
        let is_linked = || self.ask("ip", &["-oneline", "link"]).contains(": kiln");
        while !self.tables().is_empty() || is_linked() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(self.ask("cat", &["/proc/sys/net/ipv4/ip_forward"]).trim(), "0");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for server in &mut self.servers {
            server.kill().and_then(|()| server.wait()).expect("ended");
        }
        for name in &self.names {
            tool("ip", &["netns", "delete", name]);
        }
    }
}

fn ended(mut command: Command) -> Said {
    said(&command.output().expect("ip starts"))
}

fn world(run: &str) -> World {
    let world = World::new();
    world.busybox().file("Dockerfile", &format!("FROM busybox\nRUN {run}\n"));
    world
}

fn reach(address: &str) -> String {
    format!("busybox nc -w 2 {address} 7001 </dev/null")
}

#[test]
fn steps_reach_outwards_and_not_the_machine() {
    let machine = Machine::new("reach");
    let script = format!(
        "{}; ! {} && ! {} && ! {} && echo apart",
        reach(OUTSIDE),
        reach(MACHINE),
        reach("127.0.0.1"),
        reach("$(busybox route -n | busybox awk '/UG/ {print $2}')")
    );
    let built = ended(machine.build(&world(&script), &[])).ok();
    // The world sees the machine, and knows no way to a step.
    assert!(built.err.contains(&format!("outside {MACHINE}")), "{}", built.err);
    assert!(built.err.contains(" apart"), "{}", built.err);
    assert!(!built.err.contains("note:"), "{}", built.err);
    machine.is_clean();
}

#[test]
fn the_machine_is_reached_where_that_is_asked_for() {
    let machine = Machine::new("gateway");
    let built = ended(machine.build(&world(&reach("host")), &["--add-host", "host:host-gateway"]));
    assert!(built.ok().err.contains("machine 169.254."), "by its own address");
    machine.is_clean();
}

#[test]
fn what_killed_builds_left_goes() {
    let machine = Machine::new("killed");
    let world = world("echo started; sleep 1000");
    let start = || {
        let mut command = machine.build(&world, &[]);
        let builder = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut builder = builder.expect("started");
        let told = BufReader::new(builder.stderr.take().expect("a pipe"));
        let mut lines = told.lines().map_while(Result::ok);
        assert!(lines.any(|line| line.ends_with(" started")), "the step has begun");
        builder
    };
    // The builder alone: what keeps the network removes it.
    let mut builder = start();
    assert!(machine.tables().contains(&"kiln_guard".to_owned()));
    builder.kill().and_then(|()| builder.wait()).expect("ended");
    machine.is_clean();
    // Both: the next build does.
    let mut builder = start();
    let tables = machine.tables();
    let keepers: Vec<_> =
        tables.iter().filter_map(|name| name.strip_prefix("kiln_")?.parse::<i32>().ok()).collect();
    assert!(!keepers.is_empty(), "{tables:?}");
    for keeper in keepers {
        tool("kill", &["-9", &keeper.to_string()]);
    }
    builder.kill().and_then(|()| builder.wait()).expect("ended");
    assert!(!machine.tables().is_empty());
    world.file("Dockerfile", "FROM busybox\nRUN true\n");
    ended(machine.build(&world, &[])).ok();
    machine.is_clean();
}

/// Rules that forward nothing cannot be overruled: then the network is shared, and that is told.
#[test]
fn a_machine_that_forwards_nothing_is_told() {
    let machine = Machine::new("fenced");
    machine.ask("nft", &["add", "table", "ip", "filter"]);
    let chain = "{ type filter hook forward priority 0; policy drop; }";
    machine.ask("nft", &["add", "chain", "ip", "filter", "FORWARD", chain]);
    let built = ended(machine.build(&world(&reach(MACHINE)), &[])).ok();
    assert!(built.err.contains("note: steps share this machine's network"), "{}", built.err);
    assert_eq!(machine.ask("nft", &["list", "tables"]).trim(), "table ip filter");
}
