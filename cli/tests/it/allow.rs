//! `--allow`: what a Dockerfile asks for beyond the sandbox is the caller's to give.

use crate::env::World;

#[test]
fn insecure_steps_need_to_be_allowed() {
    let world = World::new();
    let step = "grep -E 'CapEff|Seccomp:' /proc/self/status && ls /dev/kmsg";
    let text = format!("FROM busybox\nRUN --security=insecure {step}\nRUN ! ({step})\n");
    world.busybox().file("Dockerfile", &text);
    let refused = world.build(&[]);
    assert_eq!(refused.code, 1, "{}", refused.err);
    for expect in ["security.insecure is not allowed", "--allow security.insecure", "Dockerfile:2:"]
    {
        assert!(refused.err.contains(expect), "{expect:?} is not in:\n{}", refused.err);
    }
    let built = world.build(&["--allow", "security.insecure"]).ok();
    for expect in ["Seccomp:\t0", "/dev/kmsg", "Seccomp:\t2", "CapEff:\t00000000a80425fb"] {
        assert!(built.err.contains(expect), "{expect:?} is not in:\n{}", built.err);
    }
    let again = world.build(&["--allow=network.host,security.insecure"]).ok();
    assert_eq!(again.err.matches("CACHED").count(), 2, "{}", again.err);
}

#[test]
fn the_hosts_network_needs_to_be_allowed() {
    let world = World::new();
    world.busybox().file("Dockerfile", "FROM busybox\nRUN --network=host true\n");
    let check = |args: &[&str]| {
        let refused = world.build(args);
        assert_eq!(refused.code, 1, "{}", refused.err);
        for expect in ["network.host is not allowed", "--allow network.host", "Dockerfile:2:"] {
            assert!(refused.err.contains(expect), "{expect:?} is not in:\n{}", refused.err);
        }
    };
    check(&[]);
    check(&["--allow", "security.insecure"]);
    world.build(&["--allow", "network.host"]).ok();
    world.file("Dockerfile", "FROM busybox\nRUN --network=default true\n");
    check(&["--network", "host"]);
    world.build(&["--network", "host", "--allow", "network.host"]).ok();
    world.build(&["--network", "none"]).ok();
}

#[test]
fn what_only_reads_needs_nothing_allowed() {
    let world = World::new();
    let text = "FROM busybox\nRUN --security=insecure true\nRUN --network=host true\nRUN --device=vendor.test/dev=none,required true\n";
    world.busybox().file("Dockerfile", text);
    world.build(&["--check"]).ok();
    world.build(&["--call", "outline"]).ok();
    world.kiln(&["lint", "ctx/Dockerfile"]).ok();
    assert_eq!(world.build(&[]).code, 1, "building does");
}

#[test]
fn only_known_entitlements_are_allowed() {
    let world = World::new();
    world.file("Dockerfile", "FROM scratch\n");
    let refused = world.build(&["--allow", "security.everything"]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    for expect in ["security.everything", "network.host, security.insecure"] {
        assert!(refused.err.contains(expect), "{expect:?} is not in:\n{}", refused.err);
    }
}
