//! Files of the host that no build may read or change, and the verdict on an attack: no difference to
//! them, to mounts and processes, plus a clear error or a contained result (security.md, section 1).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::env::{Said, World, text};

/// In each file of the sentinel. It may show up nowhere.
const CANARY: &str = "canary-of-the-host-2f6b";

/// Names that attacks aim at.
const FILES: &[&str] = &["f", "x", "hostname", "hosts", "passwd", "resolv.conf", "shadow", "null"];

/// A folder of the host and what it was like. It is open to everybody: what keeps a step out has to
/// be the step's root, not its user.
pub(crate) struct Sentinel {
    dir: tempfile::TempDir,
    before: BTreeMap<PathBuf, String>,
    mounts: Vec<String>,
}

impl Sentinel {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("sentinel-").tempdir().expect("a folder");
        for folder in ["", "sub", "sub/b"] {
            fs::create_dir_all(dir.path().join(folder)).expect("folder made");
        }
        for name in FILES.iter().copied().chain(["sub/x", "sub/b/x"]) {
            let path = dir.path().join(name);
            fs::write(&path, format!("{CANARY} {name}\n")).expect("file written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("mode set");
        }
        for folder in ["", "sub", "sub/b"] {
            let open = fs::Permissions::from_mode(0o777);
            fs::set_permissions(dir.path().join(folder), open).expect("mode set");
        }
        let before = state(dir.path());
        Self { dir, before, mounts: mounts() }
    }

    /// The folder, as text for a Dockerfile.
    pub(crate) fn path(&self) -> String {
        text(self.dir.path())
    }

    /// The host is as it was, and a build showed nothing of it.
    #[track_caller]
    pub(crate) fn is_unharmed(&self, world: &World, said: &Said) {
        assert_eq!(self.before, state(self.dir.path()), "the host's files:\n{}", said.err);
        for shown in [&said.out, &said.err] {
            assert!(!shown.contains(CANARY), "a file of the host was read:\n{shown}");
        }
        let folder = text(&world.path(""));
        let new = mounts().into_iter().filter(|line| !self.mounts.contains(line));
        let left: Vec<_> = new.filter(|line| is_ours(line, &folder)).collect();
        assert!(left.is_empty(), "mounts are left: {left:#?}");
        assert_eq!(runs_in(&folder), None, "a process of the build is left");
    }

    /// Whether a process of the world's builds runs.
    pub(crate) fn runs_in(&self, world: &World) -> bool {
        runs_in(&text(&world.path(""))).is_some()
    }

    /// No file below a folder (an output, a store) has a file of the host in it.
    #[track_caller]
    pub(crate) fn is_not_in(&self, folder: &Path) {
        for path in crate::env::files(folder) {
            let bytes = fs::read(&path).expect("readable");
            let found = bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
            assert!(!found, "a file of the host is in {}", path.display());
        }
    }
}

/// Every name with type, mode, owner, links, times and content.
fn state(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let about = fs::symlink_metadata(folder).expect("it is there");
    let content = if about.is_file() { fs::read(folder).expect("readable") } else { Vec::new() };
    let times = (about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec());
    let facts = (about.mode(), about.uid(), about.gid(), about.nlink(), about.ino(), times);
    found.insert(folder.to_owned(), format!("{facts:?} {}", blake3::hash(&content)));
    if about.is_dir() {
        for entry in fs::read_dir(folder).expect("readable") {
            found.append(&mut state(&entry.expect("readable").path()));
        }
    }
    found
}

fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    text.lines().map(str::to_owned).collect()
}

/// Mounts that a build could have left: in its folder, or over the places that steps have mounts at.
/// (Other tests and programs of the machine may mount what they like elsewhere.)
fn is_ours(line: &str, folder: &str) -> bool {
    let point = line.split(' ').nth(4).unwrap_or_default();
    let covers = |place: &str| point == place || point.starts_with(&format!("{place}/"));
    line.contains(folder.trim_end_matches('/'))
        || ["/dev", "/proc", "/sys", "/etc"].into_iter().any(covers)
}

/// The command line of a process that names a folder in it or in its environment.
fn runs_in(folder: &str) -> Option<String> {
    let needle = folder.trim_end_matches('/').as_bytes();
    let read = |entry: &fs::DirEntry, file| fs::read(entry.path().join(file)).unwrap_or_default();
    let names = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    let mut processes = fs::read_dir("/proc").expect("readable").flatten();
    let found =
        processes.find(|entry| names(&read(entry, "cmdline")) || names(&read(entry, "environ")))?;
    Some(String::from_utf8_lossy(&read(&found, "cmdline")).replace('\0', " "))
}
