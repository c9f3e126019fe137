//! V25: what a step may open sockets of.

use super::process::with_probe;

/// V25: rare socket families are closed, also by the 32-bit door.
#[test]
fn v25_rare_socket_families_are_closed() {
    let attack = with_probe();
    for (call, family) in
        [("socket", 38), ("dgram", 38), ("socket", 40), ("socketcall", 38), ("socketcall", 40)]
    {
        let said = attack.build(&format!("FROM probe\nRUN probe {call} {family}\n"), &[]).ok();
        let closed = ["EPERM", "EAFNOSUPPORT", "ENOSYS"];
        let found = closed.iter().any(|error| said.err.contains(&format!("{call}: {error}")));
        assert!(found, "{call} {family}: {}", said.err);
    }
    let text = "FROM probe\nRUN probe socket 1 && probe dgram 2\n";
    attack.build(text, &[]).ok().told(" dgram: done");
}
