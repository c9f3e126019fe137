//! Cache keys. One walk over an operation writes its key and, if asked, the named parts of which a
//! later miss can say what differs.
//!
//! | operation | in the key | not in the key |
//! |---|---|---|
//! | image | platform, diff ids | name, registry |
//! | RUN | arguments, environment in order, directory, user, host name, names of extra hosts, network, limits, /dev/shm, platform; mounts: kind, target, access, source path; id and sharing of a cache only where it is the default; id, target and owner of secrets | addresses of extra hosts, proxies, secret values, content of cache mounts |
//! | COPY, ADD | destination, owner, mode, link, parents, excludes, the selected files (relative names and content), names and content of heredocs | paths of the context on this machine, times, owners of context files |
//! | WORKDIR | path, user, epoch | |
//! | git | commit, folder, submodules, times; address and reference where `.git` stays | address, reference |
//!
//! In the *definition key* inputs count by their definition keys, in the *content key* by their
//! content. Files of a context count by content in both, and so does what COPY takes from a
//! snapshot, or a bind mount shows of one, in the content key. The base of a COPY `--link` is in its
//! definition key alone.
//!
//! The encoding is versioned ([`VERSION`]) and has test vectors: the same inputs give the same key
//! on every machine.

use std::collections::HashMap;

use kiln_cache::{ContentDigest, Key};
use kiln_parser::git::GitRef;
use kiln_parser::graph::{Chmod, CopyFrom, CopyOp, Input, MkdirOp, Mount, Node, NodeId, Op, RunOp};

/// Changes whenever the meaning of a key does; old records are then never found again. Not where a part is only left out
/// or gets another name: such a key equals none that was written before.
pub const VERSION: u32 = 1;

/// Takes the parts of a key.
trait Parts {
    /// One part. A `hidden` value may be private: it is shown as a digest only.
    fn part(&mut self, name: &str, value: &[u8], hidden: bool);

    fn text(&mut self, name: &str, value: &str) {
        self.part(name, value.as_bytes(), false);
    }
}

impl Parts for blake3::Hasher {
    fn part(&mut self, name: &str, value: &[u8], _: bool) {
        for bytes in [name.as_bytes(), value] {
            self.update(&(bytes.len() as u64).to_le_bytes());
            self.update(bytes);
        }
    }
}

/// What a value that may be private begins with where parts are told: it is a keyed digest.
pub const KEYED: &str = "keyed:";

/// Named parts as text, for explaining.
struct Recorder<'a> {
    digest_key: &'a [u8; 32],
    found: Vec<(String, String)>,
}

impl Parts for Recorder<'_> {
    fn part(&mut self, name: &str, value: &[u8], hidden: bool) {
        let value = if hidden {
            let digest = blake3::keyed_hash(self.digest_key, value).to_hex();
            format!("{KEYED}{}", &digest[..16])
        } else {
            String::from_utf8_lossy(value).into_owned()
        };
        self.found.push((name.to_owned(), value));
    }
}

/// How inputs count.
#[derive(Debug)]
pub enum Inputs<'a> {
    /// By their definition keys.
    Definition(&'a HashMap<NodeId, Key>),
    /// By their content.
    Content(&'a HashMap<NodeId, ContentDigest>),
    /// By their content, layers of images by their files: another key, known once they are in the store.
    Files(&'a HashMap<NodeId, ContentDigest>),
}

impl Inputs<'_> {
    fn write(&self, name: &str, input: Input, parts: &mut dyn Parts) {
        let Input::Node(id) = input else { return parts.text(name, "scratch") };
        let value = match self {
            Self::Definition(keys) => keys.get(&id).map(Key::hex),
            Self::Content(contents) | Self::Files(contents) => {
                contents.get(&id).map(ContentDigest::hex)
            }
        };
        // A node without a key (a context) is never an input by itself: its files are.
        parts.text(name, value.as_deref().unwrap_or("none"));
    }

    const fn kind(&self) -> &'static str {
        match self {
            Self::Definition(_) => "definition",
            Self::Content(_) => "content",
            Self::Files(_) => "files",
        }
    }
}

/// The key of a node. `selected` is the identity of the files that a COPY reads, in the content key also
/// of those that the bind mounts of a RUN show ([`shows_part`]).
#[must_use]
pub fn key(node: &Node, inputs: &Inputs<'_>, selected: Option<&ContentDigest>) -> Key {
    let mut hasher = blake3::Hasher::new();
    write(node, inputs, selected, &mut hasher);
    hasher.finalize().into()
}

/// The same walk as text: what [`key`] hashed, values that may be private as digests with the store's
/// `digest_key`.
#[must_use]
pub fn parts(
    node: &Node,
    inputs: &Inputs<'_>,
    selected: Option<&ContentDigest>,
    digest_key: &[u8; 32],
) -> Vec<(String, String)> {
    let mut recorder = Recorder { digest_key, found: Vec::new() };
    write(node, inputs, selected, &mut recorder);
    recorder.found
}

fn write(
    node: &Node,
    inputs: &Inputs<'_>,
    selected: Option<&ContentDigest>,
    parts: &mut dyn Parts,
) {
    parts.text("version", &format!("kiln {} {VERSION}", inputs.kind()));
    if let Some(platform) = &node.platform {
        parts.text("platform", &platform.to_string());
    }
    match &node.op {
        Op::Image(image) => {
            parts.text("operation", "image");
            for diff_id in &image.diff_ids {
                parts.text("layer", diff_id);
            }
        }
        Op::Context { .. } | Op::Http(_) => parts.text("operation", "source"),
        Op::Git(git) => write_git(git, selected, parts),
        Op::Run(run) => write_run(run, inputs, selected, parts),
        Op::Copy(copy) => write_copy(copy, inputs, selected, parts),
        Op::Mkdir(mkdir) => write_mkdir(mkdir, inputs, parts),
    }
}

/// The reference itself is not in the key: the commit that it is now is.
fn write_git(git: &GitRef, selected: Option<&ContentDigest>, parts: &mut dyn Parts) {
    parts.text("operation", "git");
    parts.text("folder", &git.subdir);
    parts.text("submodules", if git.skip_submodules { "no" } else { "yes" });
    parts.text("times", if git.commit_times { "commit" } else { "checkout" });
    if git.keep_git_dir {
        // What is in .git says where it came from.
        parts.text("keep", &format!("{}#{}", git.remote, git.reference));
    }
    if let Some(selected) = selected {
        parts.text("commit", &selected.hex());
    }
}

fn write_run(
    run: &RunOp,
    inputs: &Inputs<'_>,
    selected: Option<&ContentDigest>,
    parts: &mut dyn Parts,
) {
    parts.text("operation", "run");
    inputs.write("base", run.base, parts);
    for argument in &run.args {
        parts.text("argument", argument);
    }
    for (name, value) in run.env.iter() {
        parts.part(&format!("env {name}"), value.as_bytes(), true);
    }
    parts.text("directory", &run.cwd);
    parts.text("user", &run.user);
    parts.text("host name", &run.hostname);
    parts.text("network", &format!("{:?}", run.network));
    parts.text("insecure", if run.insecure { "yes" } else { "no" });
    for device in &run.devices {
        parts.text("device", device);
    }
    for (name, _) in run.hosts.iter() {
        parts.text("host", name);
    }
    for script in &run.scripts {
        parts.text(&format!("script {}", script.name), &script.data);
    }
    if let Some(size) = run.shm_size {
        parts.text("shm size", &size.to_string());
    }
    if let Some(parent) = &run.cgroup_parent {
        parts.text("cgroup parent", parent);
    }
    for limit in run.ulimits.iter() {
        parts.text(&format!("limit {}", limit.name), &format!("{}:{}", limit.soft, limit.hard));
    }
    for mount in &run.mounts {
        let by_files = selected.is_some() && shows_part(mount).is_some();
        write_mount(mount, inputs, by_files, parts);
    }
    if let Some(selected) = selected {
        parts.text("mounted files", &selected.hex());
    }
}

/// The snapshot of a bind mount that shows a part of it, and which part.
#[must_use]
pub fn shows_part(mount: &Mount) -> Option<(NodeId, &str)> {
    match mount {
        Mount::Bind { from: Input::Node(id), source, .. } if source != "/" => Some((*id, source)),
        _ => None,
    }
}

fn write_mount(mount: &Mount, inputs: &Inputs<'_>, by_files: bool, parts: &mut dyn Parts) {
    let name = format!("mount {}", mount.target().unwrap_or_default());
    match mount {
        Mount::Bind { from, source, read_only, .. } => {
            parts.text(&name, &format!("bind {source} {read_only}"));
            if !by_files {
                inputs.write("mount source", *from, parts);
            }
        }
        Mount::Cache { id, default_id, sharing, from, source, owner, read_only, .. } => {
            let identity =
                if *default_id { format!("{id} {sharing:?}") } else { "named".to_owned() };
            parts.text(&name, &format!("cache {identity} {source} {owner:?} {read_only}"));
            inputs.write("mount source", *from, parts);
        }
        Mount::Tmpfs { size, .. } => parts.text(&name, &format!("tmpfs {size:?}")),
        Mount::Secret { id, env, required, owner, .. } => {
            parts.text(&name, &format!("secret {id} {env:?} {required} {owner:?}"));
        }
        Mount::Ssh { id, required, owner, .. } => {
            parts.text(&name, &format!("ssh {id} {required} {owner:?}"));
        }
    }
}

fn write_copy(
    copy: &CopyOp,
    inputs: &Inputs<'_>,
    selected: Option<&ContentDigest>,
    parts: &mut dyn Parts,
) {
    parts.text("operation", "copy");
    let by_content = !matches!(inputs, Inputs::Definition(_));
    // The layer of `--link` does not depend on what it is put on; the result as a whole does.
    if !(copy.link && by_content) {
        inputs.write("base", copy.base, parts);
    }
    parts.text("destination", &copy.dest);
    parts.text("owner", copy.chown.as_deref().unwrap_or_default());
    match &copy.chmod {
        None => {}
        Some(Chmod::Octal(mode)) => parts.text("mode", &format!("{mode:o}")),
        Some(Chmod::Symbolic(text)) => parts.text("mode", text),
    }
    parts.text("link", if copy.link { "yes" } else { "no" });
    parts.text("parents", if copy.parents { "yes" } else { "no" });
    for pattern in &copy.exclude {
        parts.text("exclude", pattern);
    }
    for source in &copy.sources {
        let unpack = format!("{:?}", source.unpack);
        match &source.from {
            CopyFrom::Inline(file) => {
                parts.text("file", &file.name);
                parts.part("content", file.data.as_bytes(), true);
            }
            CopyFrom::Context(_) => {
                parts.text("context files", &format!("{} {unpack}", base_name(&source.path)))
            }
            CopyFrom::Remote(_) => parts.text("remote file", &unpack),
            CopyFrom::Snapshot(input) => {
                if by_content {
                    parts.text("files", &format!("{} {unpack}", base_name(&source.path)));
                } else {
                    parts.text("path", &format!("{} {unpack}", source.path));
                    inputs.write("source", *input, parts);
                }
            }
        }
    }
    if let Some(selected) = selected {
        parts.text("selected files", &selected.hex());
    }
}

/// Where files come from inside of the source does not matter, what they are called does.
fn base_name(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

fn write_mkdir(mkdir: &MkdirOp, inputs: &Inputs<'_>, parts: &mut dyn Parts) {
    parts.text("operation", "mkdir");
    inputs.write("base", mkdir.base, parts);
    parts.text("path", &mkdir.path);
    parts.text("user", &mkdir.user);
    if let Some(epoch) = mkdir.epoch {
        parts.text("epoch", &epoch.to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use kiln_parser::graph::{Input, Mount, Network, Node, Op, RunOp};
    use kiln_parser::platform::Platform;

    use super::{Inputs, key, parts};

    fn run() -> RunOp {
        RunOp {
            base: Input::Scratch,
            args: vec!["/bin/sh".into(), "-c".into(), "make".into()],
            env: Arc::new(vec![
                ("PATH".into(), "/bin".into()),
                ("TOKEN".into(), "swordfish".into()),
            ]),
            proxy: Arc::default(),
            cwd: "/".into(),
            user: String::new(),
            network: Network::Default,
            insecure: false,
            devices: Vec::new(),
            mounts: Vec::new(),
            scripts: Vec::new(),
            hostname: "buildkitsandbox".into(),
            hosts: Arc::new(vec![("a".into(), "10.0.0.1".into())]),
            shm_size: None,
            ulimits: Arc::default(),
            cgroup_parent: None,
        }
    }

    fn node(op: RunOp) -> Node {
        let platform =
            Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() };
        Node {
            op: Op::Run(Box::new(op)),
            platform: Some(platform),
            no_cache: false,
            steps: Vec::new(),
        }
    }

    fn hex(op: RunOp) -> String {
        key(&node(op), &Inputs::Definition(&HashMap::new()), None).hex()
    }

    #[test]
    fn keys_do_not_change_between_versions() {
        assert_eq!(hex(run()), "281071775ee51f21a0fb3ba3ac777c3cdf8edbcb0ad52295bbc9ddc8f609c631");
    }

    #[test]
    fn what_can_change_the_result_changes_the_key() {
        let secret = Mount::Secret {
            id: "s".into(),
            target: Some("/s".into()),
            env: None,
            required: false,
            owner: (0o400, 0, 0),
        };
        type Change = Box<dyn Fn(&mut RunOp)>;
        let changes: Vec<(&str, Change)> = vec![
            ("args", Box::new(|op| op.args[2].push('x'))),
            ("env", Box::new(|op| op.env = Arc::new(vec![("PATH".into(), "/bin".into())]))),
            ("cwd", Box::new(|op| op.cwd = "/x".into())),
            ("user", Box::new(|op| op.user = "x".into())),
            ("network", Box::new(|op| op.network = Network::None)),
            ("hostname", Box::new(|op| op.hostname = "x".into())),
            ("hosts", Box::new(|op| op.hosts = Arc::new(vec![("b".into(), "10.0.0.1".into())]))),
            ("shm", Box::new(|op| op.shm_size = Some(1))),
            ("mounts", Box::new(move |op| op.mounts = vec![secret.clone()])),
        ];
        let mut seen = vec![hex(run())];
        for (name, change) in changes {
            let mut op = run();
            change(&mut op);
            let key = hex(op);
            assert!(!seen.contains(&key), "{name}");
            seen.push(key);
        }
    }

    #[test]
    fn what_cannot_change_the_result_does_not() {
        let mut op = run();
        op.proxy = Arc::new(vec![("HTTP_PROXY".into(), "http://proxy".into())]);
        op.hosts = Arc::new(vec![("a".into(), "10.0.0.2".into())]);
        assert_eq!(hex(op), hex(run()));
    }

    #[test]
    fn parts_hide_values() {
        let parts = parts(&node(run()), &Inputs::Definition(&HashMap::new()), None, &[7; 32]);
        assert!(parts.iter().any(|(name, _)| name == "env TOKEN"));
        assert!(!format!("{parts:?}").contains("swordfish"));
        assert!(parts.contains(&("argument".into(), "make".into())));
    }
}
