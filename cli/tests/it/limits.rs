//! What steps may use of the machine: memory, processes, the network.

use crate::env::{Said, World};

fn world(run: &str) -> World {
    let world = World::new();
    world.busybox().file("Dockerfile", &format!("FROM busybox\nRUN {run}\n"));
    world
}

/// On a machine without control groups a limit is no wish but an error.
fn refused_as_told(world: &World, built: &Said) -> bool {
    let lack = world.lacks("limits").is_some();
    if lack {
        assert!(built.code == 3 && built.err.contains("remedy: "), "{}", built.err);
    }
    lack
}

/// X10: the limit is named, the builder lives.
#[test]
fn x10_memory_is_limited() {
    let world = world("busybox tail /dev/zero");
    let built = world.build(&["--memory", "64m"]);
    if refused_as_told(&world, &built) {
        return;
    }
    assert_eq!(built.code, 1, "{}", built.err);
    assert!(built.err.contains("out of memory (limit 64 MiB)"), "{}", built.err);
    assert!(built.err.contains("--memory"), "{}", built.err);
}

/// X09: a fork bomb fails in its step.
#[test]
fn x09_processes_are_limited() {
    let world = world("for n in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; wait");
    let built = world.build(&["--pids-limit", "8"]);
    if refused_as_told(&world, &built) {
        return;
    }
    assert_eq!(built.code, 1, "{}", built.err);
    assert!(built.err.contains("too many processes (pids limit 8)"), "{}", built.err);
}

#[test]
fn processors_are_limited() {
    let world = world("true");
    let built = world.build(&["--cpus", "0.5"]);
    if !refused_as_told(&world, &built) {
        built.ok();
    }
    let refused = world.build(&["--cpus", "many"]);
    assert!(refused.err.contains("invalid --cpus `many`"), "{}", refused.err);
}

/// X21: what listens on the machine's loopback interface is out of reach, unless it is asked for.
#[test]
fn x21_loopback_of_the_machine_is_out_of_reach() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    // Accepts and closes, so that who gets through is not kept waiting.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let world = world(&format!("busybox nc -w 1 127.0.0.1 {port} </dev/null && echo reached"));
    let mut apart = vec!["default", "none"];
    if world.lacks("network").is_some() {
        // Shared, as the build says; else it would be an error, as the configuration says.
        apart.retain(|network| *network != "default");
        let built = world.build(&["--network", "default"]).ok();
        assert!(built.err.contains("note: steps share this machine's network"), "{}", built.err);
    }
    for network in apart {
        let built = world.build(&["--network", network]);
        assert_eq!(built.code, 1, "{network}: {}", built.err);
    }
    world.build(&["--network", "host", "--allow", "network.host"]).ok();
}

#[test]
fn a_name_server_can_be_given() {
    let world = world("cat /etc/resolv.conf");
    let built = world.build(&["--dns", "192.0.2.53"]).ok();
    assert!(built.err.contains("nameserver 192.0.2.53"), "{}", built.err);
    let refused = world.build(&["--dns", "nowhere"]);
    assert!(refused.err.contains("invalid --dns `nowhere`"), "{}", refused.err);
}

/// V25 and S30 in short: a call of another ABI answers, it does not kill.
#[test]
fn privileges_can_be_cut() {
    let world = world("grep NoNewPrivs /proc/self/status");
    let usual = world.build(&[]).ok();
    assert!(usual.err.contains("NoNewPrivs:\t0"), "{}", usual.err);
    let cut = world.build(&["--no-cache", "--security-opt", "no-new-privileges"]).ok();
    assert!(cut.err.contains("NoNewPrivs:\t1"), "{}", cut.err);
}

#[test]
fn profiles_of_callers_are_used() {
    let world = world("mkdir /x");
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}"#;
    std::fs::write(world.path("p.json"), profile).expect("written");
    let refused = world.build(&["--security-opt", "seccomp=p.json"]);
    assert!(refused.err.contains("Operation not permitted"), "{}", refused.err);
    std::fs::write(world.path("p.json"), "{}").expect("written");
    let bad = world.build(&["--security-opt", "seccomp=p.json"]);
    assert!(bad.err.contains("`p.json` is not a seccomp profile"), "{}", bad.err);
    let all = world.build(&["--security-opt", "seccomp=unconfined"]);
    assert!(all.err.contains("--allow security.insecure"), "{}", all.err);
}
