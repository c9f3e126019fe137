//! Control groups of steps (cgroups(7); version 2, version 1, or both side by side): `--cgroup-parent`
//! puts a step below a group of the caller's choice, and limits need a group in any case. An ordinary
//! user's are in the group of the builder, where that is delegated (`delegated`).

mod delegated;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::spec::Resources;

/// How often a group that is still busy is tried again.
const REMOVE_TRIES: u32 = 50;

/// Where groups are made that only exist for their limits.
const PARENT: &str = "kiln";

/// What lets a builder make groups.
const REMEDY: &str = "remedy: run kiln as root, or in a group that is yours: systemd-run --user --scope -p Delegate=yes kiln …";

/// The period in which processor time is shared out, in microseconds (the kernel's default).
const CPU_PERIOD: u64 = 100_000;

/// The groups of one step; removed when dropped.
#[derive(Debug)]
pub(crate) struct Group {
    folders: Vec<PathBuf>,
}

/// A limit that stopped something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hit {
    /// The kernel killed a process for want of memory.
    Memory,
    /// A process or thread was refused.
    Pids,
}

/// A mounted hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    /// Where it is mounted.
    path: PathBuf,
    /// Which of its groups is seen there.
    root: PathBuf,
    /// Options of the file system: of version 1, the controllers.
    options: Vec<String>,
    /// Version 2.
    unified: bool,
}

/// Makes room for the groups of steps in the group of the builder, where those of an ordinary user are.
/// Before the builder has children, which would stay in the way.
pub fn settle() {
    delegated::all();
}

impl Group {
    /// Makes `PARENT/NAME` in all hierarchies, with limits in those that have their controllers. Without a
    /// wish for a parent, and without the right to make one, `NAME` in the builder's own group.
    ///
    /// # Errors
    /// No hierarchy can be written, or a limit cannot be set.
    pub(crate) fn new(parent: Option<&str>, name: &str, resources: &Resources) -> io::Result<Self> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let below = parent.unwrap_or(PARENT).trim_matches('/');
        let mut group = Self { folders: Vec::new() };
        let mut refused = None;
        for hierarchy in hierarchies(&table) {
            let folder = hierarchy.path.join(below).join(name);
            let made = make(&hierarchy, &folder).map(|()| folder.clone());
            let made = match (made, parent) {
                (Err(error), None) => make_own(&hierarchy, name).ok_or(error),
                (made, _) => made,
            };
            match made {
                Ok(folder) => group.folders.push(folder),
                Err(error) => refused = Some((folder, error)),
            }
        }
        match (group.folders.is_empty(), refused) {
            (false, _) => {
                group.limit(resources)?;
                Ok(group)
            }
            (true, Some((folder, error))) => {
                let message =
                    format!("make the control group {}: {error}; {REMEDY}", folder.display());
                Err(io::Error::new(error.kind(), message))
            }
            (true, None) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "no control group hierarchy is mounted",
            )),
        }
    }

    /// Moves the calling process into the groups.
    pub(crate) fn enter(&self) -> io::Result<()> {
        for folder in &self.folders {
            let mut file = fs::File::options().write(true).open(folder.join("cgroup.procs"))?;
            file.write_all(b"0")?;
        }
        Ok(())
    }

    fn limit(&self, resources: &Resources) -> io::Result<()> {
        if let Some(bytes) = resources.memory {
            let bytes = bytes.to_string();
            self.set("memory", &[("memory.max", &bytes), ("memory.limit_in_bytes", &bytes)])?;
            // Without swap, or with swap counted, as far as the kernel accounts for it.
            self.set_if_there("memory.swap.max", "0")?;
            self.set_if_there("memory.memsw.limit_in_bytes", &bytes)?;
        }
        if let Some(milli) = resources.milli_cpus {
            let quota = (milli * CPU_PERIOD / 1000).max(1000).to_string();
            let both = format!("{quota} {CPU_PERIOD}");
            self.set("cpus", &[("cpu.max", &both), ("cpu.cfs_quota_us", &quota)])?;
        }
        if let Some(count) = resources.pids {
            self.set("pids-limit", &[("pids.max", &count.to_string())])?;
        }
        Ok(())
    }

    /// Writes the first of the files that a group of the step has.
    fn set(&self, option: &str, files: &[(&str, &str)]) -> io::Result<()> {
        for (name, value) in files {
            if self.set_if_there(name, value)? {
                return Ok(());
            }
        }
        let message = format!("--{option}: no control group here has the controller; {REMEDY}");
        Err(io::Error::new(io::ErrorKind::Unsupported, message))
    }

    fn set_if_there(&self, name: &str, value: &str) -> io::Result<bool> {
        for folder in &self.folders {
            let path = folder.join(name);
            if path.exists() {
                let written = fs::write(&path, value);
                return written.map(|()| true).map_err(|error| {
                    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                });
            }
        }
        Ok(false)
    }

    /// Which limit stopped something of the step.
    pub(crate) fn hit(&self) -> Option<Hit> {
        let counted = |file: &str, key: &str| {
            self.folders.iter().any(|folder| {
                fs::read_to_string(folder.join(file)).is_ok_and(|text| counts(&text, key))
            })
        };
        if counted("memory.events", "oom_kill") || counted("memory.oom_control", "oom_kill") {
            return Some(Hit::Memory);
        }
        counted("pids.events", "max").then_some(Hit::Pids)
    }
}

/// Whether a table of `key number` lines has more than 0 for a key.
fn counts(text: &str, key: &str) -> bool {
    text.lines().any(|line| {
        line.split_once(' ')
            .is_some_and(|(name, count)| name == key && count.trim().parse() != Ok(0))
    })
}

impl Drop for Group {
    fn drop(&mut self) {
        for folder in &self.folders {
            // All at once, and whatever it forks meanwhile (version 2, since Linux 5.14). Pid 1 is gone, and
            // everything with it, but for what is on its way out.
            let _older = fs::write(folder.join("cgroup.kill"), "1");
            remove(folder);
        }
    }
}

/// Removes a group, and those in it, which an insecure step may have made.
fn remove(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    for _ in 0..REMOVE_TRIES {
        match fs::remove_dir(folder) {
            // The last processes may still be on their way out.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(Duration::from_millis(2));
            }
            _ => break,
        }
    }
}

/// Makes a group in that of the builder, if that is its own.
fn make_own(hierarchy: &Hierarchy, name: &str) -> Option<PathBuf> {
    let own = delegated::all().iter().find(|own| own.hierarchy == hierarchy.path)?;
    let folder = own.folder.join(name);
    make(hierarchy, &folder).ok().map(|()| folder)
}

/// Where hierarchies are mounted, by a table in the form of /proc/self/mountinfo (proc(5)).
fn hierarchies(table: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in table.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else { continue };
        let unified = match file_system.split(' ').next() {
            Some("cgroup") => false,
            Some("cgroup2") => true,
            _ => continue,
        };
        let mut fields = mount.split(' ').skip(3).map(PathBuf::from);
        let options = file_system.split(' ').next_back().unwrap_or_default();
        let options = options.split(',').map(str::to_owned).collect();
        if let (Some(root), Some(path)) = (fields.next(), fields.next())
            && !found.iter().any(|known| known.path == path)
        {
            found.push(Hierarchy { path, root, options, unified });
        }
    }
    found
}

/// Makes a group and those above it, with the controllers that the ones above have to give. Version 1's
/// `cpuset` takes no process before it has processors and memory: those of the group above.
fn make(hierarchy: &Hierarchy, folder: &Path) -> io::Result<()> {
    let root = &hierarchy.path;
    let mut path = root.clone();
    for part in folder.strip_prefix(root).map_err(io::Error::other)?.components() {
        let above = path.clone();
        path.push(part);
        if hierarchy.unified {
            for controller in delegated::CONTROLLERS {
                let text = format!("+{controller}");
                // A controller that cannot be had is missed when its limit is set.
                let _refused = fs::write(above.join("cgroup.subtree_control"), text);
            }
        }
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(text) = fs::read_to_string(path.join(file))
                && text.trim().is_empty()
                && above.join("cgroup.clone_children").exists()
            {
                fs::write(path.join(file), fs::read_to_string(above.join(file))?)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Hierarchy, counts, hierarchies};

    #[test]
    fn mounts_are_found() {
        let table = "30 23 0:26 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let expect = [
            ("/sys/fs/cgroup/unified", true, &["rw"][..]),
            ("/sys/fs/cgroup/cpu", false, &["rw", "cpu"]),
        ]
        .map(|(path, unified, options)| Hierarchy {
            path: path.into(),
            root: "/".into(),
            options: options.iter().map(|one| (*one).to_owned()).collect(),
            unified,
        });
        assert_eq!(hierarchies(table), expect);
    }

    #[test]
    fn events_are_counted() {
        assert!(counts("low 0\noom_kill 2\n", "oom_kill"));
        assert!(!counts("oom_kill 0\nmax 3\n", "oom_kill"));
    }
}
