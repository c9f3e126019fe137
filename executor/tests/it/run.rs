//! One step at a time on busybox, which the set-up installs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use kiln_executor::cancel::Cancel;
use kiln_executor::run::{Exit, LogSink, RunError, Stream, run};
use kiln_executor::spec::{
    HostAddress, MountSource, MountSpec, Network, Resources, RunSpec, Stack, Streams, SystemCalls,
};

#[derive(Default)]
struct Log(Mutex<Vec<u8>>);

impl LogSink for Log {
    fn write(&self, _: Stream, data: &[u8]) {
        self.0.lock().expect("not poisoned").extend_from_slice(data);
    }
}

pub(crate) struct Sandbox {
    dir: tempfile::TempDir,
    pub(crate) spec: RunSpec,
}

impl Sandbox {
    pub(crate) fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let base = dir.path().join("base");
        fs::create_dir_all(base.join("bin")).expect("made");
        fs::create_dir_all(base.join("etc")).expect("made");
        fs::copy("/bin/busybox", base.join("bin/busybox")).expect("busybox-static is installed");
        for name in [
            "sh", "cat", "ls", "id", "touch", "mkdir", "rm", "sleep", "mount", "ip", "grep",
            "stat", "env", "hostname", "test", "kill", "pwd", "unshare", "chmod",
        ] {
            symlink("busybox", base.join("bin").join(name)).expect("linked");
        }
        fs::write(
            base.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nbob:x:7:8::/home/bob:/bin/sh\n",
        )
        .expect("written");
        fs::write(base.join("etc/group"), "root:x:0:\nbob:x:8:\nmore:x:9:bob\n").expect("written");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("mode");
        let made = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).expect("made");
            path
        };
        let spec = RunSpec {
            snapshotter: Default::default(),
            enclosure: Default::default(),
            base: Stack { layers: vec![base] },
            upper: made("upper"),
            work: made("work"),
            store: dir.path().to_owned(),
            scratch: made("scratch"),
            streams: Streams::Logged,
            args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec![("PATH".into(), "/bin".into())],
            cwd: "/".into(),
            user: String::new(),
            network: Network::None,
            insecure: false,
            own_ids: true,
            system_calls: SystemCalls::Standard { multiplexed_sockets: false },
            no_new_privileges: false,
            hostname: "buildkitsandbox".into(),
            hosts: vec![("extra".into(), HostAddress::Fixed("10.9.8.7".parse().expect("address")))],
            mounts: Vec::new(),
            shm_size: None,
            limits: Vec::new(),
            dns: Vec::new(),
            ca_certs: None,
            grace: Duration::from_secs(1),
            resources: Resources::default(),
            cgroup_parent: None,
            groups: Vec::new(),
        };
        Self { dir, spec }
    }

    pub(crate) fn run(&self) -> (Result<Exit, RunError>, String) {
        let log = Log::default();
        let result = run(&self.spec, &log, &Cancel::new().expect("descriptor"));
        let text = String::from_utf8_lossy(&log.0.into_inner().expect("not poisoned")).into_owned();
        (result, text)
    }

    /// The output of a script that must succeed.
    pub(crate) fn output(&self) -> String {
        let (result, text) = self.run();
        assert_eq!(result.as_ref().ok(), Some(&Exit::Code(0)), "{result:?}: {text}");
        text
    }

    fn upper(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(&self.spec.upper, &self.spec.upper, &mut found);
        found.sort();
        found
    }
}

fn walk(root: &Path, dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("readable") {
        let entry = entry.expect("readable");
        found.push(entry.path().strip_prefix(root).expect("below").to_owned());
        if entry.file_type().expect("known").is_dir() {
            walk(root, &entry.path(), found);
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("readable");
        assert!(!mounts.contains(&self.dir.path().display().to_string()), "a mount is left");
    }
}

#[test]
fn a_step_sees_a_small_clean_world() {
    let sandbox = Sandbox::new(
        "id; hostname; pwd; env; cat /etc/hosts; ls /proc/1/root/bin/sh; ls /dev; umask; cat /proc/self/status | grep -E 'Cap(Prm|Eff|Inh|Bnd|Amb)|NoNewPrivs|Seccomp:'; ls -l /proc/self/fd",
    );
    let text = sandbox.output();
    for expect in [
        "uid=0(root) gid=0(root) groups=0(root)\n",
        "buildkitsandbox",
        "HOME=/root",
        "10.9.8.7\textra",
        "CapPrm:\t00000000a80425fb",
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "CapInh:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t0",
        "Seccomp:\t2",
        "0022",
        "urandom",
    ] {
        assert!(text.contains(expect), "{expect:?} is not in:\n{text}");
    }
    assert_eq!(sandbox.upper(), Vec::<PathBuf>::new(), "nothing was written, nothing is left");
}

#[test]
fn what_a_step_writes_is_in_the_upper_directory() {
    let sandbox = Sandbox::new("mkdir /a; touch /a/b; rm /etc/group; chmod 700 /etc/passwd");
    sandbox.output();
    let paths: Vec<PathBuf> =
        ["a", "a/b", "etc", "etc/group", "etc/passwd"].map(PathBuf::from).to_vec();
    assert_eq!(sandbox.upper(), paths);
    let whiteout = fs::symlink_metadata(sandbox.spec.upper.join("etc/group")).expect("whiteout");
    assert_eq!((whiteout.mode() & libc::S_IFMT, whiteout.rdev()), (libc::S_IFCHR, 0));
}

#[test]
fn ends_are_told_apart() {
    assert_eq!(Sandbox::new("exit 7").run().0.expect("ran"), Exit::Code(7));
    assert_eq!(Sandbox::new("kill -9 $$").run().0.expect("ran"), Exit::Signal(9));
    let mut sandbox = Sandbox::new("");
    sandbox.spec.args = vec!["nothing-of-that-name".into()];
    let error = sandbox.run().0.expect_err("not there").to_string();
    assert_eq!(error, "exec: \"nothing-of-that-name\": executable file not found in $PATH");
    let mut sandbox = Sandbox::new("");
    sandbox.spec.user = "nobody".into();
    let error = sandbox.run().0.expect_err("no such user").to_string();
    assert_eq!(error, "unable to find user nobody: no matching entries in passwd file");
}

#[test]
fn users_come_from_the_image() {
    let mut sandbox = Sandbox::new(
        "id -u; id -g; id -G; echo $HOME; pwd; cat /proc/self/status | grep CapEff; stat -c %u /w",
    );
    sandbox.spec.user = "bob".into();
    sandbox.spec.cwd = "/w/x".into();
    assert_eq!(sandbox.output(), "7\n8\n8 9\n/home/bob\n/w/x\nCapEff:\t0000000000000000\n7\n");
}

#[test]
fn nothing_survives_a_step() {
    let sandbox = Sandbox::new("sleep 1000 & sleep 1000 & echo started");
    let before = Instant::now();
    assert_eq!(sandbox.output(), "started\n");
    assert!(before.elapsed() < Duration::from_secs(100), "it waited for the background");
}

#[test]
fn a_cancelled_step_is_gone() {
    let sandbox = Sandbox::new("sleep 1000");
    let cancel = Cancel::new().expect("descriptor");
    let other = cancel.clone();
    let waiting = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        other.cancel();
    });
    let result = run(&sandbox.spec, &Log::default(), &cancel);
    waiting.join().expect("joined");
    assert!(matches!(result, Err(RunError::Cancelled)), "{result:?}");
}

#[test]
fn without_network_there_is_loopback_alone() {
    let text = Sandbox::new("ip -o link; cat /etc/resolv.conf").output();
    assert!(text.contains("lo:") && text.contains("UP"), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("mtu")).count(), 1, "{text}");
}

#[test]
fn namespaces_and_mounts_are_refused() {
    let sandbox = Sandbox::new(
        "mount -t tmpfs x /etc && echo mounted; unshare -m true && echo unshared; true",
    );
    let text = sandbox.output();
    assert!(!text.contains("mounted") && !text.contains("unshared"), "{text}");
}

#[test]
fn an_insecure_step_has_what_the_builder_has() {
    let script = "cat /proc/self/status | grep -E 'Cap(Prm|Eff|Inh|Bnd|Amb)|Seccomp:'; mount -t tmpfs x /etc && echo mounted; ls /dev; test -w /proc/sys && touch /proc/sys/kernel/hostname && echo writable; cat /proc/self/mounts";
    let mut sandbox = Sandbox::new(script);
    sandbox.spec.insecure = true;
    let status = fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find(|line| line.starts_with("CapPrm")).expect("there");
    let (_, all) = line.split_once('\t').expect("a value");
    for user in ["", "bob"] {
        sandbox.spec.user = user.into();
        let text = sandbox.output();
        for name in ["CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb"] {
            assert!(text.contains(&format!("{name}:\t{all}")), "{name} of {user:?}:\n{text}");
        }
        for expect in ["Seccomp:\t0", "mounted", "fuse", "loop7", "kmsg", "net", "/sys sysfs rw"] {
            assert!(text.contains(expect), "{expect:?} of {user:?} is not in:\n{text}");
        }
        assert_eq!(text.contains("writable"), user.is_empty(), "{user:?}: {text}");
        assert!(!text.contains("/proc/kcore"), "nothing is mounted over parts of /proc:\n{text}");
        fs::remove_dir_all(&sandbox.spec.work).expect("removed");
        fs::create_dir(&sandbox.spec.work).expect("made");
    }
    assert_eq!(sandbox.upper(), Vec::<PathBuf>::new());
}

#[test]
fn mounts_are_seen_and_leave_no_trace() {
    let mut sandbox = Sandbox::new(
        "cat /m/one/f; echo x > /m/rw/f; cat /m/rw/f; (echo y > /m/one/f) 2>/dev/null || echo refused; cat /run/secrets/s; echo kept > /cache/k; ls -la /run/secrets/s; touch /tmpfs/t",
    );
    let dir = sandbox.dir.path().to_owned();
    fs::create_dir_all(dir.join("layer/sub")).expect("made");
    fs::write(dir.join("layer/sub/f"), "from layer\n").expect("written");
    fs::create_dir(dir.join("cache")).expect("made");
    let stack = Stack { layers: vec![dir.join("layer")] };
    let layers =
        |read_only| MountSource::Layers { stack: stack.clone(), source: "/sub".into(), read_only };
    let mount = |target: &str, source| MountSpec { target: target.into(), source };
    sandbox.spec.mounts = vec![
        mount("/m/one", layers(true)),
        mount("/m/rw", layers(false)),
        mount(
            "/cache",
            MountSource::Folder { folder: dir.join("cache"), source: "/".into(), read_only: false },
        ),
        mount("/tmpfs", MountSource::Tmpfs { size: Some(1 << 20) }),
        mount(
            "/run/secrets/s",
            MountSource::File {
                content: b"hush\n".to_vec(),
                owner: (0o400, 0, 0),
                executable: false,
            },
        ),
    ];
    let text = sandbox.output();
    assert!(text.starts_with("from layer\nx\nrefused\nhush\n"), "{text}");
    assert!(text.contains("-r--------"), "{text}");
    assert_eq!(fs::read_to_string(dir.join("cache/k")).expect("kept"), "kept\n");
    assert_eq!(fs::read_to_string(dir.join("layer/sub/f")).expect("untouched"), "from layer\n");
    assert_eq!(sandbox.upper(), Vec::<PathBuf>::new());
}

#[test]
fn many_layers_work() {
    let mut sandbox = Sandbox::new("cat /n/250; ls /n | grep -c .");
    for number in 0..=250 {
        let layer = sandbox.dir.path().join(format!("l{number}"));
        fs::create_dir_all(layer.join("n")).expect("made");
        fs::write(layer.join(format!("n/{number}")), format!("{number}\n")).expect("written");
        sandbox.spec.base.layers.push(layer);
    }
    assert_eq!(sandbox.output(), "250\n251\n");
}

#[test]
fn an_image_cannot_redirect_system_mounts() {
    let sandbox = Sandbox::new("true");
    symlink("/etc", sandbox.dir.path().join("base/proc")).expect("linked");
    let error = sandbox.run().0.expect_err("refused").to_string();
    assert!(error.contains("/proc of the image is no directory"), "{error}");
}
