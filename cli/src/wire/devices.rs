//! Devices of this machine by the Container Device Interface (github.com/cncf-tags/container-device-
//! interface, SPEC.md): files in `/etc/cdi` and `/var/run/cdi` say what a device's containers get.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kiln_executor::spec::{MountSource, MountSpec};
use kiln_parser::lower::DeviceInfo;
use kiln_solver::ports::{Kind, StepError};
use serde::Deserialize;

use crate::failure::{Failure, plain_io};

/// Where descriptions are looked for; the last folder that describes a device counts.
const FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// BuildKit's annotation of devices that need no `--allow`.
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";
/// BuildKit's annotation of another name of a device.
const CLASS: &str = "org.mobyproject.buildkit.device.class";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Description {
    kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    /// A name, which YAML may take for a number.
    name: Name,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Number(u64),
}

impl Name {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
        }
    }
}

/// What a container gets.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<HostMount>,
    hooks: Vec<serde_json::Value>,
    #[serde(rename = "additionalGids")]
    additional_gids: Vec<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: PathBuf,
    host_path: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HostMount {
    host_path: PathBuf,
    container_path: PathBuf,
    #[serde(default)]
    options: Vec<String>,
}

/// The devices of this machine.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    known: BTreeMap<String, (DeviceInfo, Vec<Edits>)>,
}

/// What a step gets for its devices.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// Variables.
    pub(crate) env: Vec<(String, String)>,
    /// Nodes and files.
    pub(crate) mounts: Vec<MountSpec>,
    /// Groups that its user is in besides its own.
    pub(crate) groups: Vec<u32>,
}

impl Devices {
    /// Reads all descriptions; `folders` replaces the usual ones where it is not empty.
    ///
    /// # Errors
    /// A description that makes no sense.
    pub(crate) fn read(folders: &[PathBuf]) -> Result<Self, Failure> {
        let usual = FOLDERS.map(PathBuf::from);
        let folders = if folders.is_empty() { usual.as_slice() } else { folders };
        let mut devices = Self::default();
        for folder in folders {
            let Ok(entries) = fs::read_dir(folder) else { continue };
            let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            files.sort();
            for file in files {
                if let Some(description) = read(&file)? {
                    devices.add(description);
                }
            }
        }
        Ok(devices)
    }

    fn add(&mut self, description: Description) {
        for device in description.devices {
            let name = format!("{}={}", description.kind, device.name.text());
            let annotation = |key: &str| {
                device.annotations.get(key).or_else(|| description.annotations.get(key)).cloned()
            };
            let info = DeviceInfo {
                name: name.clone(),
                classes: annotation(CLASS).into_iter().collect(),
                auto_allow: annotation(AUTO_ALLOW).as_deref() == Some("true"),
            };
            let edits = vec![description.container_edits.clone(), device.container_edits];
            self.known.insert(name, (info, edits));
        }
    }

    /// What the language has to know of them.
    pub(crate) fn infos(&self) -> Vec<DeviceInfo> {
        self.known.values().map(|(info, _)| info.clone()).collect()
    }

    /// What a step gets for its devices.
    ///
    /// # Errors
    /// A device that is gone, or asks for hooks.
    pub(crate) fn give(&self, names: &[String]) -> Result<Given, StepError> {
        let mut given = Given::default();
        for name in names {
            let (_, edits) = self.known.get(name).ok_or_else(|| {
                StepError::new(Kind::Environment, format!("device {name:?} is not registered"))
            })?;
            for edits in edits {
                edits.apply(name, &mut given)?;
            }
        }
        Ok(given)
    }
}

impl Edits {
    fn apply(&self, device: &str, given: &mut Given) -> Result<(), StepError> {
        if !self.hooks.is_empty() {
            let message = format!("device {device:?} asks for hooks, which are not run");
            let help = "programs of the host are never run for a step; describe the device by nodes and mounts";
            return Err(StepError { kind: Kind::Input, message, help: Some(help.to_owned()) });
        }
        for line in &self.env {
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            given.env.push((name.to_owned(), value.to_owned()));
        }
        for node in &self.device_nodes {
            let host = node.host_path.as_ref().unwrap_or(&node.path);
            given.mounts.push(mount(device, host, &node.path, false)?);
        }
        for file in &self.mounts {
            let read_only = file.options.iter().any(|option| option == "ro");
            given.mounts.push(mount(device, &file.host_path, &file.container_path, read_only)?);
        }
        given.groups.extend(&self.additional_gids);
        Ok(())
    }
}

fn mount(
    device: &str,
    host: &Path,
    target: &Path,
    read_only: bool,
) -> Result<MountSpec, StepError> {
    let gone = |why: String| {
        let message = format!("device {device:?} needs `{}`: {why}", host.display());
        StepError::new(Kind::Environment, message)
    };
    let found = fs::canonicalize(host).map_err(|e| gone(plain_io(&e)))?;
    let (folder, source) = match (found.parent(), found.file_name()) {
        (Some(parent), Some(name)) if !found.is_dir() => {
            (parent.to_owned(), Path::new("/").join(name))
        }
        _ => (found, PathBuf::from("/")),
    };
    if !target.is_absolute() {
        return Err(gone(format!("`{}` is no absolute path", target.display())));
    }
    let source = MountSource::Folder { folder, source, read_only };
    Ok(MountSpec { target: target.to_owned(), source })
}

/// A description; `None` for files that are none by their names.
fn read(file: &Path) -> Result<Option<Description>, Failure> {
    let kind = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if !matches!(kind, "json" | "yaml" | "yml") {
        return Ok(None);
    }
    let text = fs::read_to_string(file).map_err(|e| Failure::io("read", file.display(), &e))?;
    let read = if kind == "json" {
        serde_json::from_str(&text).map_err(|e| e.to_string())
    } else {
        serde_norway::from_str(&text).map_err(|e| e.to_string())
    };
    read.map(Some).map_err(|why| {
        Failure::environment(format_args!(
            "`{}` is no description of devices: {why}",
            file.display()
        ))
        .hint("mend or remove it (Container Device Interface)")
    })
}

#[cfg(test)]
mod tests {
    use super::Devices;

    const YAML: &str = "cdiVersion: 0.6.0\nkind: vendor.test/dev\ncontainerEdits:\n  env: [ALL=1]\ndevices:\n- name: 0\n  annotations:\n    org.mobyproject.buildkit.device.autoallow: \"true\"\n  containerEdits:\n    env: [ONE=a=b]\n    additionalGids: [44]\n    deviceNodes:\n    - path: /dev/zero-again\n      hostPath: /dev/zero\n- name: hooked\n  containerEdits:\n    hooks: [{hookName: createContainer, path: /bin/true}]\n";

    #[test]
    fn descriptions_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("v.yaml"), YAML).expect("written");
        std::fs::write(folder.path().join("README"), "no description").expect("written");
        let devices = Devices::read(&[folder.path().to_owned()]).expect("valid");
        let infos = devices.infos();
        assert_eq!(infos.len(), 2);
        assert!(infos[0].auto_allow && infos[0].name == "vendor.test/dev=0");
        let given = devices.give(&["vendor.test/dev=0".to_owned()]).expect("given");
        assert_eq!(given.env[1], ("ONE".to_owned(), "a=b".to_owned()));
        assert_eq!((given.mounts.len(), given.groups.as_slice()), (1, [44].as_slice()));
        assert!(devices.give(&["vendor.test/dev=hooked".to_owned()]).is_err());
        std::fs::write(folder.path().join("w.json"), "{").expect("written");
        assert!(Devices::read(&[folder.path().to_owned()]).is_err());
    }
}
