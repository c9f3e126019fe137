//! The image config: a base image's document, patched.
//!
//! A config that came with a base image is kept as the JSON object it was, in its order, with every
//! field that we do not know; a build only sets the fields that it owns (behaviour.md 6.1). The
//! typed part is [`ContainerConfig`], the `config` object that Dockerfile instructions write.

use std::collections::BTreeMap;

use kiln_cache::{DiffId, Digest, Platform};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cache::index::INLINE_KEY;
use crate::history::HistoryEntry;
use crate::json::{self, DocumentError};
use crate::limits;
use crate::manifest::nullable;

const WHAT: &str = "image config";

/// Fields that only ever described Docker's own container of the build; they would be untrue in
/// the new image and are not carried over.
const DOCKER_LEFTOVERS: [&str; 5] =
    ["container", "container_config", "docker_version", "id", "parent"];

/// A health check, as Docker and OCI images write it. Times are nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", text]`.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Between two checks.
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// Longest time of one check.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// Failures do not count for so long after the start.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Between two checks in the start period.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row until the container counts as unhealthy.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// The `config` object: how a container of this image starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// `user[:group]`.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `port/protocol`; the values are empty objects.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Map<String, Value>>,
    /// `NAME=value`, in order.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Entry point; none and empty differ (an empty one was reset).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Default arguments; none and empty differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Paths of volumes; the values are empty objects.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Map<String, Value>>,
    /// Where a container starts.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Labels, sorted.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Signal that ends a container.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Docker's extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Docker's extension: the shell of shell-form instructions.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// Docker's extension: instructions for builds on top of this image.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    /// Docker's extension: the command is one string already (Windows).
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_false")]
    pub args_escaped: bool,
}

/// The keys of [`ContainerConfig`] in a document: a patch replaces exactly these.
const CONTAINER_KEYS: [&str; 13] = [
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "Healthcheck",
    "Shell",
    "OnBuild",
    "ArgsEscaped",
];

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// An image config as a document; see the module.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigDocument {
    fields: Map<String, Value>,
}

impl ConfigDocument {
    /// The config of an image from nothing: platform, no layers, an empty `config`.
    #[must_use]
    pub fn new(platform: &Platform) -> Self {
        let mut document = Self { fields: Map::new() };
        document.set_platform(platform);
        document.set_diff_ids(&[]);
        document
    }

    /// Reads a config. What it does not hold (a registry may serve `null` lists) reads as empty.
    ///
    /// # Errors
    /// When the bytes are too many, not a JSON object, hold a key twice, or a field that we read
    /// has another type than the specification gives it.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        match json::parse_value(WHAT, bytes, limits::CONFIG_BYTES)? {
            Value::Object(fields) => {
                let document = Self { fields };
                document.diff_ids()?;
                document.history()?;
                document.container()?;
                Ok(document)
            }
            _ => Err(DocumentError::malformed(WHAT, "it is not an object")),
        }
    }

    /// A top-level field.
    #[must_use]
    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.fields.get(key)
    }

    /// Sets or removes the cache that the image carries; what another builder left is of another image.
    pub(crate) fn set_inline_cache(&mut self, cache: Option<Value>) {
        self.fields.shift_remove(crate::cache::BUILDKIT_INLINE);
        self.fields.shift_remove(INLINE_KEY);
        if let Some(cache) = cache {
            self.set(INLINE_KEY, cache);
        }
    }

    /// A top-level text field, e.g. `author`; absent, `null` and empty are none.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.fields.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    /// The platform that the image says it is for.
    ///
    /// # Errors
    /// `missing os` or `missing architecture`: an image without them cannot be exported
    /// (BuildKit's `invalid image config for export`).
    pub fn platform(&self) -> Result<Platform, DocumentError> {
        let required = |key: &str| {
            self.text(key)
                .map(str::to_owned)
                .ok_or_else(|| DocumentError::malformed(WHAT, format!("missing {key}")))
        };
        Ok(Platform {
            os: required("os")?,
            architecture: required("architecture")?,
            variant: self.text("variant").map(str::to_owned),
            os_version: self.text("os.version").map(str::to_owned),
            os_features: self.field("os.features")?,
        })
    }

    /// Digests of the layers' archives, bottom to top.
    ///
    /// # Errors
    /// When `rootfs.diff_ids` is not a list of digests.
    pub fn diff_ids(&self) -> Result<Vec<DiffId>, DocumentError> {
        let list = self.fields.get("rootfs").and_then(|rootfs| rootfs.get("diff_ids"));
        let digests: Vec<Digest> = read(list)?;
        Ok(digests.into_iter().map(DiffId).collect())
    }

    /// The history as it stands.
    ///
    /// # Errors
    /// When `history` is not a list of history entries.
    pub fn history(&self) -> Result<Vec<HistoryEntry>, DocumentError> {
        self.field("history")
    }

    /// The `config` object, as far as Dockerfiles know it.
    ///
    /// # Errors
    /// When a field has another type than the specification gives it.
    pub fn container(&self) -> Result<ContainerConfig, DocumentError> {
        self.field("config")
    }

    /// Sets platform fields; those that the platform leaves open are removed.
    pub fn set_platform(&mut self, platform: &Platform) {
        self.set("architecture", Value::from(platform.architecture.as_str()));
        self.set("os", Value::from(platform.os.as_str()));
        self.set("variant", platform.variant.as_deref().map_or(Value::Null, Value::from));
        self.set("os.version", platform.os_version.as_deref().map_or(Value::Null, Value::from));
        let features = match platform.os_features.as_slice() {
            [] => Value::Null,
            list => Value::from(list.to_vec()),
        };
        self.set("os.features", features);
    }

    /// Sets `author`; an empty one removes it.
    pub fn set_author(&mut self, author: &str) {
        self.set("author", if author.is_empty() { Value::Null } else { Value::from(author) });
    }

    /// Sets `created` (RFC 3339), or removes it.
    pub fn set_created(&mut self, created: Option<&str>) {
        self.set("created", created.map_or(Value::Null, Value::from));
    }

    /// Replaces the fields of [`ContainerConfig`] inside `config`; unknown ones stay.
    pub fn set_container(&mut self, container: &ContainerConfig) {
        let mut config = match self.fields.get("config") {
            Some(Value::Object(config)) => config.clone(),
            _ => Map::new(),
        };
        let mut new = object(container);
        for key in CONTAINER_KEYS {
            match new.remove(key) {
                Some(value) => _ = config.insert(key.to_owned(), value),
                None => _ = config.shift_remove(key),
            }
        }
        self.set("config", Value::Object(config));
    }

    /// Replaces the list of layers.
    pub fn set_diff_ids(&mut self, diff_ids: &[DiffId]) {
        let mut rootfs = match self.fields.get("rootfs") {
            Some(Value::Object(rootfs)) => rootfs.clone(),
            _ => Map::new(),
        };
        rootfs.insert("type".to_owned(), Value::from("layers"));
        let list: Vec<String> = diff_ids.iter().map(|id| id.0.to_string()).collect();
        rootfs.insert("diff_ids".to_owned(), Value::from(list));
        self.set("rootfs", Value::Object(rootfs));
    }

    /// Replaces the history.
    pub fn set_history(&mut self, history: &[HistoryEntry]) {
        let list = history.iter().map(|entry| Value::Object(object(entry))).collect();
        self.set("history", Value::Array(list));
    }

    /// The document's bytes, compact like BuildKit's; fields in the order in which they came.
    ///
    /// # Panics
    /// Never: a JSON object always has a text form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut fields = self.fields.clone();
        for key in DOCKER_LEFTOVERS {
            fields.shift_remove(key);
        }
        serde_json::to_vec(&fields).expect("a JSON object has a text form")
    }

    fn field<T: for<'de> Deserialize<'de> + Default>(&self, key: &str) -> Result<T, DocumentError> {
        read(self.fields.get(key))
    }

    /// Sets a top-level field in its place; `null` removes it.
    fn set(&mut self, key: &str, value: Value) {
        if value.is_null() {
            self.fields.shift_remove(key);
        } else {
            self.fields.insert(key.to_owned(), value);
        }
    }
}

fn read<T: for<'de> Deserialize<'de> + Default>(value: Option<&Value>) -> Result<T, DocumentError> {
    match value {
        None | Some(Value::Null) => Ok(T::default()),
        Some(value) => T::deserialize(value).map_err(|e| DocumentError::malformed(WHAT, e)),
    }
}

fn object(part: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(part) {
        Ok(Value::Object(map)) => map,
        other => unreachable!("parts of a config are objects, not {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = r#"{"zebra":1,"architecture":"arm64","variant":"v8","os":"linux","config":{"Env":["A=1"],"Weird":{"x":[1]},"Cmd":null,"Labels":{"b":"2","a":"1"}},"container":"abc","rootfs":{"type":"layers","diff_ids":null,"extra":true},"moby.buildkit.x":"y"}"#;

    #[test]
    fn keeps_what_it_does_not_know_in_its_place() {
        let mut document = ConfigDocument::parse(BASE.as_bytes()).unwrap();
        let mut container = document.container().unwrap();
        container.env.push("B=2".into());
        container.cmd = Some(vec![]);
        document.set_container(&container);
        document.set_diff_ids(&[DiffId(Digest::sha256(b"x"))]);
        document.set_author("me");
        let text = String::from_utf8(document.to_bytes()).unwrap();
        let digest = Digest::sha256(b"x");
        assert_eq!(
            text,
            format!(
                r#"{{"zebra":1,"architecture":"arm64","variant":"v8","os":"linux","config":{{"Env":["A=1","B=2"],"Weird":{{"x":[1]}},"Cmd":[],"Labels":{{"a":"1","b":"2"}}}},"rootfs":{{"type":"layers","diff_ids":["{digest}"],"extra":true}},"moby.buildkit.x":"y","author":"me"}}"#
            )
        );
        document.set_author("");
        assert_eq!(document.text("author"), None);
    }

    #[test]
    fn needs_a_platform_for_export() {
        for (text, part) in [
            (r#"{"architecture": "amd64"}"#, "missing os"),
            (r#"{"os": "linux"}"#, "missing architecture"),
        ] {
            let document = ConfigDocument::parse(text.as_bytes()).unwrap();
            let error = document.platform().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn refuses_other_types() {
        for text in [
            "[]",
            "null",
            r#"{"rootfs": {"diff_ids": ["sha256:zz"]}}"#,
            r#"{"config": {"Env": "A=1"}}"#,
        ] {
            assert!(ConfigDocument::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_new_config_is_minimal() {
        let document = ConfigDocument::new(&crate::platform::platform("linux", "amd64"));
        assert_eq!(
            String::from_utf8(document.to_bytes()).unwrap(),
            r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#
        );
    }
}
