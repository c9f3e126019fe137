//! Images as an attacker would make them: archives of root file systems with any entry, and OCI
//! layouts with any configuration.

use std::fs;
use std::path::Path;

use kiln_cache::Digest;
use serde_json::{Value, json};

use crate::env::{World, text};

/// The commands of busybox that tests use by their own names.
const COMMANDS: &[&str] = &[
    "cat", "echo", "ls", "sleep", "touch", "mkdir", "rm", "true", "false", "id", "wc", "grep",
    "mv", "ln", "env", "dd", "chmod", "stat", "find", "head", "readlink",
];

/// An archive of a root file system, entry by entry.
pub(crate) struct Tree(tar::Builder<Vec<u8>>);

impl Tree {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// With busybox, and nothing else.
    pub(crate) fn busybox() -> Self {
        Self::busybox_without_shell().link("bin/sh", "busybox")
    }

    /// With busybox, but /bin/sh is not there.
    pub(crate) fn busybox_without_shell() -> Self {
        let program = fs::read("/bin/busybox").expect("busybox-static is installed");
        let tree = Self::new().folder("bin").program("bin/busybox", &program);
        COMMANDS.iter().fold(tree, |tree, name| tree.link(&format!("bin/{name}"), "busybox"))
    }

    /// An entry of any kind; `link` is for links, `data` for files.
    pub(crate) fn entry(
        mut self,
        kind: tar::EntryType,
        (path, link): (&str, &str),
        (mode, uid, gid): (u32, u64, u64),
        data: &[u8],
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_mtime(0);
        header.set_size(u64::try_from(data.len()).expect("small"));
        // The null device for the kinds that are one.
        header.set_device_major(1).expect("set");
        header.set_device_minor(3).expect("set");
        let done = if link.is_empty() {
            self.0.append_data(&mut header, path, data)
        } else {
            self.0.append_link(&mut header, path, link)
        };
        done.expect("appended");
        self
    }

    pub(crate) fn folder(self, path: &str) -> Self {
        self.entry(tar::EntryType::Directory, (path, ""), (0o755, 0, 0), &[])
    }

    pub(crate) fn file(self, path: &str, content: &str) -> Self {
        self.entry(tar::EntryType::Regular, (path, ""), (0o644, 0, 0), content.as_bytes())
    }

    pub(crate) fn program(self, path: &str, content: &[u8]) -> Self {
        self.entry(tar::EntryType::Regular, (path, ""), (0o755, 0, 0), content)
    }

    pub(crate) fn link(self, path: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, (path, target), (0o777, 0, 0), &[])
    }

    pub(crate) fn fifo(self, path: &str) -> Self {
        self.entry(tar::EntryType::Fifo, (path, ""), (0o666, 0, 0), &[])
    }

    /// The null device.
    pub(crate) fn device(self, path: &str) -> Self {
        self.entry(tar::EntryType::Char, (path, ""), (0o666, 0, 0), &[])
    }

    /// The next entry has this extended attribute.
    pub(crate) fn attribute(mut self, name: &str, value: &[u8]) -> Self {
        let key = format!("SCHILY.xattr.{name}");
        self.0.append_pax_extensions([(key.as_str(), value)]).expect("appended");
        self
    }

    pub(crate) fn archive(self) -> Vec<u8> {
        self.0.into_inner().expect("finished")
    }
}

/// The processor of this machine, in the words of images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Makes an OCI layout and gives the `--build-context` that names it. `config` is the `config` object
/// of the image's configuration.
pub(crate) fn layout(world: &World, name: &str, config: &Value, layers: &[Vec<u8>]) -> String {
    let folder = world.path(name);
    fs::create_dir_all(folder.join("blobs/sha256")).expect("folder made");
    let digests: Vec<String> =
        layers.iter().map(|layer| Digest::sha256(layer).as_str().to_owned()).collect();
    let document = json!({
        "architecture": architecture(), "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": digests},
    });
    let described: Vec<Value> = layers
        .iter()
        .map(|layer| blob(&folder, "application/vnd.oci.image.layer.v1.tar", layer))
        .collect();
    let config_type = "application/vnd.oci.image.config.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(&folder, config_type, document.to_string().as_bytes()),
        "layers": described,
    });
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = blob(&folder, manifest_type, manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(folder.join("index.json"), index.to_string()).expect("file written");
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
    format!("{name}=oci-layout://{}", text(&folder))
}

/// Writes a blob, gives its descriptor.
fn blob(folder: &Path, media_type: &str, data: &[u8]) -> Value {
    let digest = Digest::sha256(data);
    fs::write(folder.join("blobs/sha256").join(digest.hex()), data).expect("file written");
    json!({"mediaType": media_type, "digest": digest.as_str(), "size": data.len()})
}
