//! The image configuration that a stage builds up: what instructions change and children inherit.
//! The document that leaves (with unknown fields of the base) is the image crate's.

/// `config` of an OCI image, with Docker's additions (OCI image specification, config.md).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `USER`, as written.
    pub user: String,
    /// `EXPOSE`: `port/protocol`, sorted.
    pub exposed_ports: std::collections::BTreeSet<String>,
    /// `ENV`, in order.
    pub env: Vec<(String, String)>,
    /// `ENTRYPOINT`; `None` where none is set.
    pub entrypoint: Option<Vec<String>>,
    /// `CMD`; `None` where none is set, empty where `CMD []` reset it.
    pub cmd: Option<Vec<String>>,
    /// `VOLUME`.
    pub volumes: std::collections::BTreeSet<String>,
    /// `WORKDIR`.
    pub working_dir: String,
    /// `LABEL`.
    pub labels: std::collections::BTreeMap<String, String>,
    /// `STOPSIGNAL`, as written.
    pub stop_signal: String,
    /// `HEALTHCHECK`.
    pub healthcheck: Option<crate::instruction::Healthcheck>,
    /// `SHELL`.
    pub shell: Vec<String>,
    /// `ONBUILD`.
    pub on_build: Vec<String>,
    /// Set by every `CMD`.
    pub args_escaped: bool,
    /// `MAINTAINER`.
    pub author: String,
}

/// Where programs are looked for when an image does not say.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
