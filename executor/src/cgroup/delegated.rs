//! The group that the builder was started in, where it is the builder's to divide: how an ordinary user
//! has limits (cgroups(7), "Delegation"; `systemd-run --user --scope -p Delegate=yes`).
//!
//! A group of version 2 gives controllers to the groups in it only while no process is in itself. So the
//! builder moves into a group beside those of its steps, before it has children. It does not move what
//! others started there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::Access;

use super::{Hierarchy, hierarchies};

/// How the builder's groups and those of its steps begin.
pub(super) const PREFIX: &str = "kiln-";

/// What limits need.
pub(super) const CONTROLLERS: &[&str] = &["memory", "cpu", "pids"];

/// The builder's group in a hierarchy whose root is not its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Own {
    /// Where the hierarchy is mounted.
    pub(super) hierarchy: PathBuf,
    /// The group's folder.
    pub(super) folder: PathBuf,
}

/// The groups that the builder may divide, found and made ready at the first call.
pub(super) fn all() -> &'static [Own] {
    static OWN: OnceLock<Vec<Own>> = OnceLock::new();
    OWN.get_or_init(|| {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (table, member) = (read("/proc/self/mountinfo"), read("/proc/self/cgroup"));
        hierarchies(&table).iter().filter_map(|hierarchy| prepare(hierarchy, &member)).collect()
    })
}

fn prepare(hierarchy: &Hierarchy, member: &str) -> Option<Own> {
    if may_write(&hierarchy.path) {
        return None;
    }
    let folder = folder(hierarchy, member).filter(|folder| may_write(folder))?;
    remove_stale(&folder);
    if hierarchy.unified {
        // What cannot be had is missed when a limit is set.
        let _refused = enable(&folder, CONTROLLERS);
    }
    Some(Own { hierarchy: hierarchy.path.clone(), folder })
}

fn may_write(folder: &Path) -> bool {
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// The folder of the group that a table in the form of /proc/self/cgroup says for a hierarchy.
fn folder(hierarchy: &Hierarchy, member: &str) -> Option<PathBuf> {
    let path = member.lines().find_map(|line| {
        let (number, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let fits = if hierarchy.unified {
            number == "0" && controllers.is_empty()
        } else {
            !controllers.is_empty()
                && controllers.split(',').all(|one| hierarchy.options.iter().any(|o| o == one))
        };
        fits.then_some(Path::new(path))
    })?;
    // A mount may show a part of the hierarchy alone.
    let below = path.strip_prefix(&hierarchy.root).ok()?;
    Some(hierarchy.path.join(below))
}

/// Removes groups of builds that were killed; those that are in use cannot be removed.
fn remove_stale(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_stale) {
            let _in_use = fs::remove_dir(entry.path());
        }
    }
}

/// Whether a group is of a builder that has ended: that of a living one may be empty for a moment.
fn is_stale(name: &str) -> bool {
    let builder = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
    builder.is_some_and(|builder| {
        builder.parse::<u32>().is_ok() && !Path::new("/proc").join(builder).exists()
    })
}

/// Gives controllers of a group to the groups in it; for that the calling process leaves it if it must.
pub(super) fn enable(folder: &Path, controllers: &[&str]) -> io::Result<()> {
    let words = |name: &str| fs::read_to_string(folder.join(name));
    let (available, given) = (words("cgroup.controllers")?, words("cgroup.subtree_control")?);
    let has = |text: &str, one: &str| text.split_whitespace().any(|word| word == one);
    let wanted: Vec<String> = controllers
        .iter()
        .filter(|one| has(&available, one) && !has(&given, one))
        .map(|one| format!("+{one}"))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let give = || fs::write(folder.join("cgroup.subtree_control"), wanted.join(" "));
    match give() {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            let aside = folder.join(format!("{PREFIX}{}", std::process::id()));
            fs::create_dir(&aside)?;
            fs::write(aside.join("cgroup.procs"), "0")?;
            give()
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::{enable, folder, remove_stale};
    use crate::cgroup::{Hierarchy, hierarchies};
    use crate::sys::process::{self, Side};

    fn hierarchy(unified: bool, root: &str, options: &[&str]) -> Hierarchy {
        let options = options.iter().map(|one| (*one).to_owned()).collect();
        Hierarchy { path: "/h".into(), root: root.into(), options, unified }
    }

    #[test]
    fn the_own_group_is_found() {
        let member = "8:pids:/a/b\n2:cpu,cpuacct:/c\n1:name=systemd:/s\n0::/user.slice/x\n";
        let found = |unified, root, options: &[&str]| {
            folder(&hierarchy(unified, root, options), member)
                .map(|path| path.display().to_string())
        };
        assert_eq!(found(false, "/", &["rw", "pids"]).as_deref(), Some("/h/a/b"));
        assert_eq!(found(false, "/a", &["rw", "pids"]).as_deref(), Some("/h/b"));
        assert_eq!(found(false, "/", &["rw", "cpuacct", "cpu"]).as_deref(), Some("/h/c"));
        assert_eq!(found(true, "/", &["rw"]).as_deref(), Some("/h/user.slice/x"));
        assert_eq!(found(true, "/elsewhere", &["rw"]), None);
        assert_eq!(found(false, "/", &["rw", "memory"]), None);
    }

    /// The group with the first controller that the machine's version 2 has to give.
    fn unified() -> Option<(PathBuf, String)> {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("readable");
        let root = hierarchies(&table).into_iter().find(|one| one.unified)?.path;
        let there = fs::read_to_string(root.join("cgroup.controllers")).expect("readable");
        let controller = there.split_whitespace().next()?.to_owned();
        fs::write(root.join("cgroup.subtree_control"), format!("+{controller}")).ok()?;
        Some((root, controller))
    }

    #[test]
    fn a_process_makes_room_for_controllers() {
        // Only a machine without version 2, or one that may not divide it, has nothing to show here.
        let Some((root, controller)) = unified() else { return };
        let group = root.join(format!("kiln-unit-{}", std::process::id()));
        fs::create_dir(&group).expect("made");
        let child = match process::fork().expect("forked") {
            Side::Child => {
                let done = fs::write(group.join("cgroup.procs"), "0")
                    .and_then(|()| enable(&group, &[&controller]))
                    .and_then(|()| fs::read_to_string(group.join("cgroup.subtree_control")));
                let aside = group.join(format!("kiln-{}", std::process::id()));
                let moved =
                    fs::read_to_string(aside.join("cgroup.procs")).is_ok_and(|t| !t.is_empty());
                process::exit(i32::from(
                    !(moved && done.is_ok_and(|text| text.contains(&controller))),
                ))
            }
            Side::Parent(child) => child,
        };
        let ended = nix::sys::wait::waitpid(child, None).expect("ended");
        assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0));
        assert!(group.join(format!("kiln-{child}")).exists());
        remove_stale(&group);
        fs::remove_dir(&group).expect("nothing is left in it");
    }
}
