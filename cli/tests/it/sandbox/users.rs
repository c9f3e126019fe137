//! X01 to X03: users of a step, and what their programs may become.

use crate::attack::Attack;
use crate::hostile::Tree;
use crate::probe;

/// `cap_net_bind_service+ep` as a file's attribute, version 2 (linux/capability.h).
const CAPABLE: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// X01: who is not root in a step has no capabilities, and is kept off by modes.
#[test]
fn x01_users_have_no_capabilities() {
    let attack = Attack::new();
    let closed = (0o400, 0, 0);
    let tree = Tree::busybox().folder("etc").file("etc/passwd", "root:x:0:0::/:/bin/sh\n");
    let tree = tree.entry(tar::EntryType::Regular, ("etc/shadow", ""), closed, b"of the image");
    attack.image("shadow", tree);
    let text = "FROM shadow\nUSER 1000\nRUN grep Cap /proc/self/status\nRUN ! cat /etc/shadow\n";
    let said = attack.build(text, &[]).ok();
    assert!(!said.err.contains("of the image"), "{}", said.err);
    said.told("CapPrm:\t0000000000000000").told("CapEff:\t0000000000000000");
}

/// X02: a program with the set-user-id bit becomes root of the step, unless that is turned off.
#[test]
fn x02_set_user_id_programs_become_root_inside() {
    let attack = Attack::new();
    let tree = Tree::busybox().folder("etc").file("etc/passwd", "root:x:0:0::/:/bin/sh\n");
    let mode = (0o4755, 0, 0);
    let program = probe::program();
    let tree = tree.entry(tar::EntryType::Regular, ("bin/become", ""), mode, &program);
    attack.image("become", tree.entry(tar::EntryType::Directory, ("tmp", ""), (0o1777, 0, 0), &[]));
    let text = "FROM become\nUSER 1000\nRUN become ids && become make /tmp/made && stat -c 'owner %u' /tmp/made\n\
        RUN ! grep -q '^ *0 *0 ' /proc/self/uid_map\n";
    attack.build(text, &[]).ok().told(" 1000 0").told(" owner 0");
    let text = "FROM become\nUSER 1000\nRUN become ids\n";
    let kept = attack.build(text, &["--security-opt", "no-new-privileges", "--no-cache"]).ok();
    kept.told(" 1000 1000");
}

/// X03: capabilities of files work after COPY and from the cache, and leave in the form of the image.
#[test]
fn x03_file_capabilities_are_kept() {
    let attack = Attack::new();
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let tree = Tree::busybox().folder("etc").folder("c").program("bin/probe", &probe::program());
    let tree = tree.file("etc/passwd", "root:x:0:0::/:/bin/sh\n");
    let tree = tree.attribute("security.capability", &CAPABLE).program("c/grep", &busybox);
    attack.image("capable", tree);
    let text = "FROM capable AS a\nRUN mkdir /d && cp /c/grep /d/grep && probe capable /d/grep\n\
        FROM capable\nCOPY --from=a /d /d\nCOPY --from=a /c /e\nUSER 1000\n\
        RUN for f in c d e; do /$f/grep CapEff /proc/self/status; done\n";
    let text = text.replace("cp ", "busybox cp ");
    let said = attack.build(&text, &["--no-cache"]).ok();
    assert_eq!(said.err.matches("CapEff:\t0000000000000400").count(), 3, "{}", said.err);
    let cached =
        format!("{text}RUN /d/grep CapEff /proc/self/status && /e/grep CapEff /proc/self/status\n");
    let said = attack.build(&cached, &["-o", "type=tar,dest=out.tar"]).ok();
    assert!(said.err.contains("CACHED"), "{}", said.err);
    assert_eq!(said.err.matches("CapEff:\t0000000000000400").count(), 2, "{}", said.err);
    let bytes = std::fs::read(attack.world.path("out.tar")).expect("there");
    let needle = [b"SCHILY.xattr.security.capability=", &CAPABLE[..]].concat();
    let found = bytes.windows(needle.len()).filter(|window| *window == needle).count();
    assert_eq!(found, 3, "each file has its capability, in version 2");
}
