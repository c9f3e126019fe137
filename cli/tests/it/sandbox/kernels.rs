//! X23: kernels that lack something.

use crate::attack::Attack;
use crate::env::text;
use crate::probe::probe;

/// X23: without a system call a build works all the same, or says what is missing and how to get it.
#[test]
fn x23_missing_system_calls_are_replaced_or_named() {
    let attack = Attack::new();
    attack.world.file("a", "1").file("Dockerfile", "FROM busybox\nCOPY a /a\nRUN cat /a\n");
    for call in [
        "clone3",
        "close_range",
        "pidfd_open",
        "landlock_create_ruleset",
        "keyctl",
        "unshare",
        "openat2",
        "fsopen",
        "open_tree",
        "mount",
        "mount_setattr",
    ] {
        // C libraries replace clone3 only where it is said to be absent.
        for error in
            ["ENOSYS", "EPERM"].into_iter().filter(|error| (call, *error) != ("clone3", "EPERM"))
        {
            let said = attack.build_by(&text(probe()), &["without", call, error]);
            if said.code == 0 {
                continue;
            }
            assert_eq!(said.code, 3, "{call} {error}: {}", said.err);
            let hint = ["remedy", "raise", "Linux", "help:", "hint:"];
            assert!(
                hint.iter().any(|word| said.err.contains(word)),
                "{call} {error}: {}",
                said.err
            );
        }
    }
}
