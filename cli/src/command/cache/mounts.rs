//! `kiln cache mounts`: the folders that `RUN --mount=type=cache` keeps, as people see them.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use kiln_cache::{MountInfo, OpenMount, Root, Store, Transferred, transfer};
use kiln_image::history::rfc3339;
use serde_json::{Value, json};

use crate::command::builds::Format;
use crate::command::{ago, open_store, print, print_error, size, table};
use crate::failure::{Failure, chain};
use crate::settings::Settings;

/// Between two attempts to get a mount that a step has.
const WAIT: Duration = Duration::from_millis(50);

/// List cache mounts, copy in and out of them, remove them.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Options {
    /// text or json
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    format: Format,

    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Copy out (ID:/PATH DEST) or in (SRC ID:/PATH); begin a path of this machine that has `:/` in it with ./
    Cp {
        /// ID:/PATH, or a path of this machine
        #[arg(value_name = "FROM")]
        from: String,
        /// A path of this machine, or ID:/PATH
        #[arg(value_name = "TO")]
        to: String,
    },
    /// Remove cache mounts that no step has
    Rm {
        /// Their ids, or names of their folders
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let store = open_store(settings)?;
    match &options.action {
        None => list(&store, options.format),
        Some(Action::Cp { from, to }) => match (place(from), place(to)) {
            (Some(from), None) => copy_out(&store, &from, Path::new(to)),
            (None, Some(to)) => copy_in(&store, Path::new(from), &to),
            _ => Err(Failure::usage(
                "one of the two has to be ID:/PATH, the other a path of this machine",
            )
            .hint("for example `kiln cache mounts cp go-build:/ ./saved`")),
        },
        Some(Action::Rm { ids }) => remove(&store, ids),
    }
}

fn all(store: &Store) -> Result<Vec<MountInfo>, Failure> {
    store.cache_mounts().map_err(|e| Failure::environment(chain(&e)))
}

fn list(store: &Store, format: Format) -> Result<(), Failure> {
    let mounts = all(store)?;
    if format == Format::Json {
        let documents: Vec<Value> = mounts.iter().map(document).collect();
        return print(&format!("{:#}\n", Value::Array(documents)));
    }
    let head = ["ID", "SIZE", "CREATED", "LAST USED", "IN USE", "FOLDER", "USED BY"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for mount in &mounts {
        let user = mount.users.first().map_or("", |(step, _)| step.as_str());
        let more = mount.users.len().saturating_sub(1);
        let short: String = user.chars().take(60).collect();
        let others = if more > 0 { format!(" (+{more})") } else { String::new() };
        rows.push(vec![
            mount.id.replace(char::is_control, "?"),
            size(mount.size),
            ago(mount.created),
            ago(mount.last_used),
            if mount.in_use { "yes" } else { "no" }.to_owned(),
            mount.folder.clone(),
            short.replace(char::is_control, " ") + &others,
        ]);
    }
    print(&table(&rows))
}

fn document(mount: &MountInfo) -> Value {
    let users = mount.users.iter();
    let users = users.map(|(step, time)| json!({"step": step, "last_used": rfc3339(*time)}));
    json!({
        "id": mount.id,
        "folder": mount.folder,
        "size": mount.size,
        "created": rfc3339(mount.created),
        "last_used": rfc3339(mount.last_used),
        "in_use": mount.in_use,
        "used_by": users.collect::<Vec<_>>(),
    })
}

/// A place in a mount.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    id: String,
    /// Beneath its folder.
    path: PathBuf,
}

/// `ID:/PATH`, split at the first `:/`; an id may have slashes and colons in it. What begins with `./` or `../` is a
/// path of this machine, whatever is in it.
fn place(text: &str) -> Option<Place> {
    if text.starts_with("./") || text.starts_with("../") {
        return None;
    }
    let (id, path) = text.split_once(":/").filter(|(id, _)| !id.is_empty())?;
    // Cleaned as text: there is nothing above a mount's folder.
    let mut clean = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    Some(Place { id: id.to_owned(), path: clean })
}

/// The mounts of an id, or the one of a folder.
fn named(store: &Store, id: &str) -> Result<Vec<MountInfo>, Failure> {
    let mut mounts = all(store)?;
    mounts.retain(|mount| mount.id == id || mount.folder == id);
    Ok(mounts)
}

fn missing(id: &str) -> Failure {
    Failure::input(format_args!("no cache mount `{id}` in the store"))
        .hint("`kiln cache mounts` lists them")
}

/// The one mount that is meant, open.
fn open(store: &Store, id: &str, alone: bool) -> Result<OpenMount, Failure> {
    let mounts = named(store, id)?;
    let [mount] = mounts.as_slice() else {
        if mounts.is_empty() {
            return Err(missing(id));
        }
        let folders: Vec<&str> = mounts.iter().map(|mount| mount.folder.as_str()).collect();
        return Err(Failure::input(format_args!("there are {} cache mounts `{id}`", mounts.len()))
            .hint(format!("name the folder instead: {}", folders.join(", "))));
    };
    let mut told = false;
    loop {
        let found = store.open_mount(&mount.folder, alone);
        if let Some(found) = found.map_err(|e| Failure::environment(chain(&e)))? {
            return Ok(found);
        }
        if named(store, &mount.folder)?.is_empty() {
            return Err(missing(id));
        }
        if !told {
            print_error(&format!("waiting for the step that has the cache mount `{id}`\n"));
            told = true;
        }
        std::thread::sleep(WAIT);
    }
}

fn copy_out(store: &Store, from: &Place, to: &Path) -> Result<(), Failure> {
    let mount = open(store, &from.id, false)?;
    let inside = |e: &std::io::Error| {
        Failure::io("read", format_args!("{}:/{}", from.id, from.path.display()), e)
    };
    mount.root.stat(&from.path).map_err(|e| inside(&e))?;
    let failed = |e: &std::io::Error| Failure::io("copy to", to.display(), e);
    // Into a folder that is there; else it becomes what was copied.
    let (root, below) = if to.is_dir() {
        (Root::open(to), from.path.file_name().map(PathBuf::from).unwrap_or_default())
    } else if from.path.as_os_str().is_empty() {
        std::fs::create_dir(to).map_err(|e| failed(&e))?;
        (Root::open(to), PathBuf::new())
    } else {
        let (folder, name) = parent(to)?;
        (Root::open(&folder), name)
    };
    let root = root.map_err(|e| failed(&e))?;
    let done = transfer((&mount.root, &from.path), (&root, &below), None);
    tell(&done.map_err(|e| failed(&e))?)
}

fn copy_in(store: &Store, from: &Path, to: &Place) -> Result<(), Failure> {
    if named(store, &to.id)?.is_empty() {
        store.make_cache_mount(&to.id).map_err(|e| Failure::environment(chain(&e)))?;
    }
    let mount = open(store, &to.id, true)?;
    let unread = |e: &std::io::Error| Failure::io("read", from.display(), e);
    // `SRC/.` is what is in it; a link stays one.
    let contents = from.to_string_lossy().ends_with("/.") || from == Path::new(".");
    let (root, path) = if contents {
        (Root::open(from), PathBuf::new())
    } else {
        let (folder, name) = parent(from)?;
        (Root::open(&folder), name)
    };
    let root = root.map_err(|e| unread(&e))?;
    root.stat(&path).map_err(|e| unread(&e))?;
    let failed = |e: &std::io::Error| {
        Failure::io("copy to", format_args!("{}:/{}", to.id, to.path.display()), e)
    };
    let folder = mount.root.stat(&to.path).is_ok_and(|s| s.kind == kiln_cache::FileKind::Directory);
    let below = if folder { to.path.join(&path) } else { to.path.clone() };
    let top = mount.root.stat(Path::new("")).map_err(|e| failed(&e))?;
    let done = transfer((&root, &path), (&mount.root, &below), Some((top.uid, top.gid)));
    tell(&done.map_err(|e| failed(&e))?)
}

/// The folder that something is in, and its name.
fn parent(path: &Path) -> Result<(PathBuf, PathBuf), Failure> {
    let name = path.file_name().ok_or_else(|| {
        Failure::usage(format_args!("`{}` has no name to copy it by", path.display()))
            .hint("name a folder's content as FOLDER/.")
    })?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    Ok((folder.unwrap_or(Path::new(".")).to_owned(), PathBuf::from(name)))
}

fn tell(done: &Transferred) -> Result<(), Failure> {
    if !done.skipped.is_empty() {
        let first = done.skipped[0].display();
        let count = done.skipped.len();
        print_error(&format!("left out {count} that are no files, such as `{first}`\n"));
    }
    print(&format!("{} files, {}\n", done.files, size(done.bytes)))
}

fn remove(store: &Store, ids: &[String]) -> Result<(), Failure> {
    let mut busy = Vec::new();
    for id in ids {
        let mounts = named(store, id)?;
        if mounts.is_empty() {
            return Err(missing(id));
        }
        for mount in mounts {
            let removed = store.remove_cache_mount(&mount.folder);
            if removed.map_err(|e| Failure::environment(chain(&e)))? {
                print(&format!("{id} {}\n", size(mount.size)))?;
            } else {
                busy.push(id.as_str());
            }
        }
    }
    if busy.is_empty() {
        return Ok(());
    }
    Err(Failure::environment(format_args!(
        "a running step has the cache mount `{}`",
        busy.join("`, `")
    ))
    .hint("wait for the build that it belongs to"))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Place, place};

    #[test]
    fn places() {
        for (text, expect) in [
            ("go:/", Some(("go", ""))),
            ("go:/a/b", Some(("go", "a/b"))),
            ("/root/.cache:/x", Some(("/root/.cache", "x"))),
            ("a:b/c:/x:/y", Some(("a:b/c", "x:/y"))),
            ("go:/../../etc/./passwd", Some(("go", "etc/passwd"))),
            ("./go:/a", None),
            ("../go:/a", None),
            ("go", None),
            ("/a/b", None),
            (":/a", None),
            ("go:a", None),
        ] {
            let expect =
                expect.map(|(id, path)| Place { id: id.to_owned(), path: PathBuf::from(path) });
            assert_eq!(place(text), expect, "{text}");
        }
    }
}
