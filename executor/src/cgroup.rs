//! Control groups of steps: `--cgroup-parent` puts a step below a group of the caller's choice, in every
//! hierarchy that is mounted and writable (cgroups(7); version 2, version 1, or both side by side).

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a group that is still busy is tried again.
const REMOVE_TRIES: u32 = 50;

/// The groups of one step; removed when dropped.
#[derive(Debug)]
pub(crate) struct Group {
    folders: Vec<PathBuf>,
}

impl Group {
    /// Makes `PARENT/NAME` in all hierarchies.
    ///
    /// # Errors
    /// No hierarchy can be written.
    pub(crate) fn new(parent: &str, name: &str) -> io::Result<Self> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let mut group = Self { folders: Vec::new() };
        let mut refused = None;
        for hierarchy in hierarchies(&table) {
            let folder = hierarchy.join(parent.trim_matches('/')).join(name);
            match make(&hierarchy, &folder) {
                Ok(()) => group.folders.push(folder),
                Err(error) => refused = Some((folder, error)),
            }
        }
        match (group.folders.is_empty(), refused) {
            (false, _) => Ok(group),
            (true, Some((folder, error))) => {
                let message = format!("make the control group {}: {error}", folder.display());
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
}

impl Drop for Group {
    fn drop(&mut self) {
        for folder in &self.folders {
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
    }
}

/// Where hierarchies are mounted, by a table in the form of /proc/self/mountinfo (proc(5)).
fn hierarchies(table: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for line in table.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else { continue };
        if !matches!(file_system.split(' ').next(), Some("cgroup" | "cgroup2")) {
            continue;
        }
        if let Some(place) = mount.split(' ').nth(4).map(PathBuf::from)
            && !found.contains(&place)
        {
            found.push(place);
        }
    }
    found
}

/// Makes a group and those above it. Version 1's `cpuset` takes no process before it has processors
/// and memory: those of the group above.
fn make(hierarchy: &Path, folder: &Path) -> io::Result<()> {
    let mut path = hierarchy.to_owned();
    for part in folder.strip_prefix(hierarchy).map_err(io::Error::other)?.components() {
        let above = path.clone();
        path.push(part);
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
    use super::hierarchies;

    #[test]
    fn mounts_are_found() {
        let table = "30 23 0:26 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let expect = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/cpu"];
        assert_eq!(hierarchies(table), expect.map(std::path::PathBuf::from));
    }
}
