//! Where things are and how the program is set up: options, environment, configuration files and
//! defaults, in that order. The only place that reads the environment.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use kiln_executor::rootless::Entered;

use crate::failure::Failure;
use crate::gc::GcConfig;
use crate::snapshotter::Snapshotter;

/// Everything that does not come from the command line of one command.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The store's folder.
    pub(crate) root: PathBuf,
    /// The merged configuration files.
    pub(crate) config: Config,
    /// Nothing is asked of other machines.
    pub(crate) offline: bool,
    /// How the files of steps are put together.
    pub(crate) snapshotter: Snapshotter,
    /// Where the builder is, once it has moved there.
    pub(crate) isolation: Option<Entered>,
}

/// `config.toml`: `/etc/kiln/config.toml`, then `$XDG_CONFIG_HOME/kiln/config.toml`, or the one file
/// that `KILN_CONFIG` names.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// Per registry host (`host[:port]`): how to reach it.
    pub(crate) registry: BTreeMap<String, RegistryConfig>,
    /// Folders with descriptions of devices, instead of the usual ones.
    pub(crate) cdi_spec_dirs: Vec<PathBuf>,
    /// Steps that cannot have a network of their own fail, instead of sharing the machine's.
    pub(crate) strict_network: bool,
    /// A file of certificate authorities that RUN steps trust besides those of their image.
    pub(crate) ca_certs: Option<PathBuf>,
    /// What is kept of the cache.
    pub(crate) gc: Option<GcConfig>,
}

/// How one registry host is reached.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct RegistryConfig {
    /// Plain http instead of https.
    pub(crate) http: bool,
    /// Hosts that are asked first.
    pub(crate) mirrors: Vec<String>,
}

impl Settings {
    /// Finds the store and reads the configuration.
    ///
    /// # Errors
    /// No home folder to put the store in; a configuration file that cannot be read or has an
    /// unknown key.
    pub(crate) fn load(root: Option<&Path>, offline: bool) -> Result<Self, Failure> {
        let (root, config) = (store_root(root)?, load_config()?);
        Ok(Self { root, config, offline, snapshotter: Snapshotter::default(), isolation: None })
    }
}

/// `--root` (which clap also fills from `KILN_ROOT`), else `/var/lib/kiln` for root and
/// `$XDG_DATA_HOME/kiln` for others (DESIGN.md section 3).
fn store_root(option: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(root) = option {
        return std::path::absolute(root).map_err(|e| Failure::io("find", root.display(), &e));
    }
    if nix::unistd::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/kiln"));
    }
    let data = absolute_from("XDG_DATA_HOME")
        .or_else(|| absolute_from("HOME").map(|home| home.join(".local/share")));
    data.map(|data| data.join("kiln")).ok_or_else(|| {
        Failure::environment(
            "cannot tell where the store is: neither `HOME` nor `XDG_DATA_HOME` is set",
        )
        .hint("name a folder with --root or KILN_ROOT")
    })
}

fn load_config() -> Result<Config, Failure> {
    if let Some(path) = env::var_os("KILN_CONFIG") {
        return read_config(Path::new(&path)).and_then(|config| {
            config.ok_or_else(|| {
                Failure::environment(format_args!(
                    "the file that KILN_CONFIG names does not exist: `{}`",
                    Path::new(&path).display()
                ))
            })
        });
    }
    let mut merged = read_config(Path::new("/etc/kiln/config.toml"))?.unwrap_or_default();
    let user = absolute_from("XDG_CONFIG_HOME")
        .or_else(|| absolute_from("HOME").map(|home| home.join(".config")));
    if let Some(user) = user
        && let Some(own) = read_config(&user.join("kiln/config.toml"))?
    {
        merged.registry.extend(own.registry);
        merged.strict_network |= own.strict_network;
        merged.ca_certs = own.ca_certs.or(merged.ca_certs);
        if !own.cdi_spec_dirs.is_empty() {
            merged.cdi_spec_dirs = own.cdi_spec_dirs;
        }
        merged.gc = own.gc.or(merged.gc);
    }
    Ok(merged)
}

fn read_config(path: &Path) -> Result<Option<Config>, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e)
            if matches!(
                e.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(Failure::io("read", path.display(), &e)),
    };
    let invalid = |why: &dyn std::fmt::Display| {
        Failure::usage(format_args!("`{}` is not a valid configuration: {why}", path.display()))
    };
    let config: Config = toml::from_str(&text).map_err(|e| invalid(&e))?;
    if let Some(gc) = &config.gc {
        gc.check().map_err(|e| invalid(&e.message()))?;
    }
    Ok(Some(config))
}

/// An environment variable that holds an absolute path (the XDG base directory specification says
/// that relative ones are to be ignored).
fn absolute_from(name: &str) -> Option<PathBuf> {
    env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The proxies that Docker's command line hands to every build: `proxies.default` of its
/// `config.json` (Docker's manual, "Configure the Docker client to use a proxy server"). A file
/// that cannot be read is the credentials' business to complain of.
pub(crate) fn docker_proxies() -> Vec<(String, String)> {
    let folder = absolute_from("DOCKER_CONFIG")
        .or_else(|| absolute_from("HOME").map(|home| home.join(".docker")));
    let text = folder.and_then(|folder| std::fs::read_to_string(folder.join("config.json")).ok());
    text.map(|text| proxies_of(&text)).unwrap_or_default()
}

fn proxies_of(text: &str) -> Vec<(String, String)> {
    const KEYS: [(&str, &str); 5] = [
        ("httpProxy", "HTTP_PROXY"),
        ("httpsProxy", "HTTPS_PROXY"),
        ("ftpProxy", "FTP_PROXY"),
        ("noProxy", "NO_PROXY"),
        ("allProxy", "ALL_PROXY"),
    ];
    let document: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let default = &document["proxies"]["default"];
    KEYS.iter()
        .filter_map(|(key, name)| Some(((*name).to_owned(), default[*key].as_str()?.to_owned())))
        .collect()
}

/// The value of an environment variable of the caller, as `--build-arg NAME` and `--secret
/// id=…,env=NAME` ask for it; `None` where it is unset.
pub(crate) fn caller_variable(name: &str) -> Option<std::ffi::OsString> {
    env::var_os(name)
}

#[cfg(test)]
mod tests {
    use super::{Config, proxies_of};

    #[test]
    fn a_registry_can_be_plain_http_with_mirrors() {
        let text = "[registry.\"registry.lan:5000\"]\nhttp = true\n[registry.\"docker.io\"]\nmirrors = [\"m.lan\"]\n";
        let config: Config = toml::from_str(text).expect("valid");
        assert!(config.registry["registry.lan:5000"].http);
        assert_eq!(config.registry["docker.io"].mirrors, ["m.lan"]);
    }

    #[test]
    fn dockers_proxies_are_read() {
        let text = r#"{"proxies":{"default":{"httpProxy":"http://p:1","noProxy":"a"}}}"#;
        let expect = [("HTTP_PROXY", "http://p:1"), ("NO_PROXY", "a")];
        assert_eq!(proxies_of(text), expect.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert!(proxies_of("no JSON").is_empty());
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(toml::from_str::<Config>("[registry.x]\nhtpp = true\n").is_err());
    }
}
