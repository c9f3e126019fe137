//! X19, X20: what the caller gives to a step stays in that step.

use std::os::unix::net::UnixListener;

use crate::attack::{Attack, QUIET};
use crate::env::{files, text};
use crate::hostile::Tree;
use crate::probe;

/// A secret as it is, and as it would look in base64 (at three offsets), hexadecimal and URLs.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    use base64::Engine as _;
    let mut forms = vec![secret.as_bytes().to_vec()];
    for padding in 0..3 {
        let padded = [&b"xxx"[..padding], secret.as_bytes()].concat();
        let text = base64::engine::general_purpose::STANDARD_NO_PAD.encode(padded);
        // The first and last characters depend on what stands around.
        forms.push(text.as_bytes()[4..text.len() - 4].to_vec());
    }
    let hex = |byte: &u8| format!("{byte:02x}");
    forms.push(secret.as_bytes().iter().map(hex).collect::<String>().into_bytes());
    forms
}

/// X19: a secret is nowhere after its step: store, image, history, logs, environments.
#[test]
fn x19_a_secret_is_nowhere() {
    let attack = Attack::new();
    let secret = "marlin/0815+swordfish=4711";
    std::fs::write(attack.world.path("secret"), secret).expect("written");
    let text_of = "FROM busybox\n\
        RUN --mount=type=secret,id=s --mount=type=secret,id=s,env=S grep -c . /run/secrets/s && test -n \"$S\"\n\
        RUN ! ls /run/secrets; cat /proc/*/environ > /env; ! grep -r marlin /env /etc\n";
    attack.world.file("Dockerfile", text_of);
    let mut command = attack.world.command();
    command.args(["build", "--progress", "plain", QUIET, "--secret", "id=s,src=secret"]);
    command.args([
        "-t",
        "made",
        "--metadata-file",
        "meta.json",
        "-o",
        "type=oci,dest=out,tar=false",
    ]);
    let said = attack.checked(command.arg("ctx")).ok();
    let inspected = attack.world.kiln(&["history", "made"]);
    std::fs::remove_file(attack.world.path("secret")).expect("removed");
    for form in forms(secret) {
        let has = |bytes: &[u8]| bytes.windows(form.len()).any(|window| window == form);
        assert!(!has(said.err.as_bytes()) && !has(said.out.as_bytes()), "{}", said.err);
        assert!(!has(inspected.out.as_bytes()), "{}", inspected.out);
        for path in files(&attack.world.path("")) {
            assert!(!has(&std::fs::read(&path).expect("readable")), "{}", path.display());
        }
    }
}

/// X20: the agent's socket is for the user that it is mounted for, in that step alone.
#[test]
fn x20_the_agents_socket_is_its_users() {
    let attack = Attack::new();
    let tree = Tree::busybox().folder("etc").program("bin/probe", &probe::program());
    attack.image("probe", tree.file("etc/passwd", "root:x:0:0::/:/bin/sh\n"));
    let socket = attack.world.path("agent");
    let _listener = UnixListener::bind(&socket).expect("bound");
    let given = format!("default={}", text(&socket));
    let mount = "--mount=type=ssh,uid=1000,mode=0600,target=/agent";
    for (user, answer) in [("1000", "done"), ("1001", "EACCES")] {
        let step = format!("FROM probe\nUSER {user}\nRUN {mount} probe agent /agent\n");
        let said = attack.build(&step, &["--ssh", &given, "--no-cache"]).ok();
        said.told(&format!(" agent: {answer}"));
    }
    let later = format!("FROM probe\nRUN {mount} true\nRUN ! test -e /agent && ! env | grep SSH\n");
    attack.build(&later, &["--ssh", &given]).ok();
}
