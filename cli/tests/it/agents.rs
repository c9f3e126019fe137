//! `--ssh`: a real ssh-agent, and OpenSSH's own ssh-add in the step that speaks to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::env::{Said, World, files, said, text, tool};

/// A running agent with one key; it ends with the test.
struct Agent {
    child: Child,
    socket: PathBuf,
    key: PathBuf,
    fingerprint: String,
}

impl Agent {
    fn start(folder: &Path) -> Self {
        let (key, socket) = (folder.join("key"), folder.join("agent.sock"));
        tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", &text(&key)]);
        let listed = tool("ssh-keygen", &["-lf", &text(&key)]);
        let fingerprint = listed.split(' ').nth(1).expect("a fingerprint").to_owned();
        let mut command = Command::new("ssh-agent");
        command.args(["-D", "-a", &text(&socket)]).stdout(Stdio::null());
        let child = command.spawn().expect("openssh-client is installed (scripts/setup.sh)");
        let agent = Self { child, socket, key, fingerprint };
        for _ in 0..200 {
            if agent.socket.exists() {
                break;
            }
            sleep(Duration::from_millis(25));
        }
        agent.add(&["-q", &text(&agent.key)]);
        agent
    }

    /// `ssh-add ARGS…` outside of any step.
    #[track_caller]
    fn add(&self, args: &[&str]) -> String {
        let mut command = Command::new("ssh-add");
        let output = command.args(args).env("SSH_AUTH_SOCK", &self.socket).output();
        said(&output.expect("ssh-add starts")).ok().out
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// A base image of busybox and ssh-add with its libraries, `base` in the Dockerfiles below.
fn world_with_ssh_add() -> World {
    let world = World::new();
    world.busybox();
    let root = world.path("ctx/root");
    let program = PathBuf::from("/usr/bin/ssh-add");
    let libraries = tool("ldd", &[&text(&program)]);
    let paths = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for path in paths.map(PathBuf::from).chain([program]) {
        let place = root.join(path.strip_prefix("/").expect("absolute"));
        fs::create_dir_all(place.parent().expect("has a parent")).expect("made");
        fs::copy(&path, place).expect("copied");
    }
    world
}

const BASE: &str = "FROM busybox AS base\nCOPY root /\nENV PATH=/bin:/usr/bin\n";

fn build(world: &World, dockerfile: &str, agent: Option<&Agent>, args: &[&str]) -> Said {
    world.file("Dockerfile", &format!("{BASE}{dockerfile}"));
    let mut command = world.command();
    if let Some(agent) = agent {
        command.env("SSH_AUTH_SOCK", &agent.socket);
    }
    command.args(["build", "--progress", "plain"]).args(args).arg("ctx");
    said(&command.output().expect("kiln starts"))
}

#[test]
fn a_step_uses_the_callers_agent_and_cannot_change_it() {
    let world = world_with_ssh_add();
    let agent = Agent::start(&world.path(""));
    let text = "RUN --mount=type=ssh echo \"at $SSH_AUTH_SOCK\" && ssh-add -l && ! ssh-add -D && ! ssh-add -x -q < /dev/null && ssh-add -T /root/key.pub && echo signed\nRUN ! ls /run && env | grep -c SSH_AUTH_SOCK || true\n";
    fs::create_dir_all(world.path("ctx/root/root")).expect("made");
    fs::copy(world.path("key.pub"), world.path("ctx/root/root/key.pub")).expect("copied");
    let built = build(&world, text, Some(&agent), &["--ssh", "default", "-o", "out"]).ok();
    for expect in ["at /run/buildkit/ssh_agent.0", &agent.fingerprint, "signed"] {
        assert!(built.err.contains(expect), "{expect:?} is not in:\n{}", built.err);
    }
    assert!(agent.add(&["-l"]).contains(&agent.fingerprint), "the key is still there");
    assert!(!world.path("out/run").exists(), "no mount point in the layer");
    let secret = fs::read(&agent.key).expect("readable");
    for place in files(&world.path("store")) {
        let bytes = fs::read(&place).expect("readable");
        assert!(!bytes.windows(40).any(|part| part == &secret[80..120]), "{}", place.display());
    }
}

#[test]
fn the_socket_has_the_mode_and_owner_that_the_mount_says() {
    let world = world_with_ssh_add();
    let agent = Agent::start(&world.path(""));
    let text = "RUN --mount=type=ssh ls -ln $SSH_AUTH_SOCK\nRUN --mount=type=ssh,target=/s/agent,mode=0640,uid=7,gid=8 ls -ln /s/agent && ls -ln $SSH_AUTH_SOCK\nUSER 1000:1000\nRUN --mount=type=ssh,uid=1000 ssh-add -l && echo mine\nRUN --mount=type=ssh ! ssh-add -l && echo refused\n";
    let built = build(&world, text, Some(&agent), &["--ssh", "default"]).ok();
    for expect in ["srw-------    1 0        0", "srw-r-----    1 7        8", "mine", "refused"] {
        assert!(built.err.contains(expect), "{expect:?} is not in:\n{}", built.err);
    }
}

#[test]
fn agents_have_ids_and_are_named_by_socket_or_key() {
    let world = world_with_ssh_add();
    let agent = Agent::start(&world.path(""));
    // The mode of the file is the caller's business, as with buildx.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(&agent.key, mode).expect("mode set");
    let steps = "RUN --mount=type=ssh,id=one --mount=type=ssh,id=two,target=/two ssh-add -l && SSH_AUTH_SOCK=/two ssh-add -l && ! ssh-add -D\n";
    let (one, two) = (format!("one={}", text(&agent.socket)), format!("two={}", text(&agent.key)));
    let built = build(&world, steps, None, &["--ssh", &one, "--ssh", &two]).ok();
    assert_eq!(built.err.matches(&agent.fingerprint).count(), 2, "{}", built.err);
    let locked = world.path("locked");
    tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "word", "-f", &text(&locked)]);
    let refused = build(&world, steps, None, &["--ssh", &format!("a={}", text(&locked))]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("has a passphrase"), "{}", refused.err);
    let raw = "RUN --mount=type=ssh ssh-add -D\n";
    let option = format!("default={},raw=true", text(&agent.socket));
    build(&world, raw, None, &["--ssh", &option]).ok();
    assert!(!agent_lists(&agent), "raw lets a step do everything");
}

fn agent_lists(agent: &Agent) -> bool {
    let mut command = Command::new("ssh-add");
    let output = command.arg("-l").env("SSH_AUTH_SOCK", &agent.socket).output();
    output.expect("ssh-add starts").status.success()
}

#[test]
fn an_agent_that_is_missing_matters_where_it_is_required() {
    let world = World::new();
    let text = "FROM busybox\nRUN --mount=type=ssh test ! -e \"$SSH_AUTH_SOCK\" && echo \"set $SSH_AUTH_SOCK\"\n";
    world.busybox().file("Dockerfile", &text.replace("test ! -e", "! ls"));
    let built = world.build(&[]).ok();
    assert!(built.err.contains("set /run/buildkit/ssh_agent.0"), "{}", built.err);
    world.file("Dockerfile", "FROM busybox\nRUN --mount=type=ssh,id=git,required true\n");
    let failed = world.build(&[]);
    assert_eq!(failed.code, 1, "{}", failed.err);
    assert!(failed.err.contains("no SSH agent \"git\""), "{}", failed.err);
    assert!(failed.err.contains("--ssh git"), "{}", failed.err);
    let refused = world.build(&["--ssh", "default"]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("SSH_AUTH_SOCK is not set"), "{}", refused.err);
}

#[test]
fn the_builds_own_agent_ends_with_the_build() {
    let world = world_with_ssh_add();
    let agent = Agent::start(&world.path(""));
    let option = format!("default={}", text(&agent.key));
    let dockerfile = "RUN --mount=type=ssh ssh-add -l && echo waiting && sleep 60\n";
    world.file("Dockerfile", &format!("{BASE}{dockerfile}"));
    let mut command = world.command();
    command.args(["build", "--progress", "plain", "--ssh", &option, "ctx"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    wait_until("the agent runs", || agents_of(&world) > 0);
    // SIGKILL: no destructor of the build runs.
    child.kill().expect("killed");
    child.wait().expect("ended");
    wait_until("the agent is gone", || agents_of(&world) == 0);
}

/// How many ssh-agents a build of this world has started.
fn agents_of(world: &World) -> usize {
    let root = format!("KILN_ROOT={}\0", text(&world.path("store")));
    let numbers = fs::read_dir("/proc").expect("readable").flatten();
    let is_one = |process: PathBuf| {
        let name = fs::read(process.join("comm")).unwrap_or_default();
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        let ours = environment.windows(root.len()).any(|window| window == root.as_bytes());
        name == b"ssh-agent\n" && ours
    };
    numbers.filter(|entry| is_one(entry.path())).count()
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..400 {
        if is_so() {
            return;
        }
        sleep(Duration::from_millis(50));
    }
    panic!("waited in vain: {what}");
}
