//! Credentials for registries, from Docker's configuration: `auths`, `credHelpers`, `credsStore`.
//!
//! `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`. Helpers are the programs
//! `docker-credential-NAME` with Docker's protocol. A helper that fails is an error: going on with
//! other credentials, or with none, would hide it (CVE-2021-41092). Nothing here can be printed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use serde::Deserialize;

use crate::reference::DEFAULT_REGISTRY;

/// Bytes of a configuration or of a helper's answer.
const LIMIT: u64 = 1 << 20;

/// How long a helper may take: some ask a cloud's service.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// Under this name Docker keeps credentials for its own registry.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// `Basic` authorization (RFC 7617) with a name and a password.
    #[must_use]
    pub fn basic(name: &[u8], password: &[u8]) -> Self {
        let pair = [name, b":", password].concat();
        Self(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What a registry is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A name and its password.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token for the token server (`identitytoken`).
    Identity(Secret),
    /// A token that the registry itself takes (`registrytoken`).
    Registry(Secret),
}

/// Why credentials cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The configuration.
    #[error("cannot read the registry credentials in `{path}`: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A helper program.
    #[error("credential helper `{helper}` failed for `{registry}`: {reason}")]
    Helper {
        /// The program.
        helper: String,
        /// What it was asked for.
        registry: String,
        /// Why.
        reason: String,
    },
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    auths: BTreeMap<String, Auth>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(credentials)")
    }
}

/// Where credentials come from.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    path: PathBuf,
    config: Config,
}

impl Credentials {
    /// No credentials at all.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Reads Docker's configuration from where the environment says; none is no error.
    ///
    /// # Errors
    /// When it cannot be read or is malformed.
    pub fn from_environment() -> Result<Self, CredentialError> {
        let set =
            |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = set("DOCKER_CONFIG").or_else(|| set("HOME").map(|home| home.join(".docker")));
        match folder {
            Some(folder) => Self::from_folder(&folder),
            None => Ok(Self::none()),
        }
    }

    /// Reads `config.json` in a folder; none is no error.
    ///
    /// # Errors
    /// When it cannot be read or is malformed.
    pub fn from_folder(folder: &Path) -> Result<Self, CredentialError> {
        let path = folder.join("config.json");
        let failed = |reason: String| CredentialError::Config { path: path.clone(), reason };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(Self::none());
            }
            Err(error) => return Err(failed(error.to_string())),
        };
        let bytes = read_limited(file).map_err(|e| failed(e.to_string()))?;
        // The parser's message could quote a value: only the place is told.
        let config = serde_json::from_slice(&bytes)
            .map_err(|e| failed(format!("malformed at line {} column {}", e.line(), e.column())))?;
        Ok(Self { path, config })
    }

    /// The credentials for a registry, e.g. `docker.io` or `localhost:5000`.
    ///
    /// # Errors
    /// When an entry is malformed or a helper fails.
    pub fn get(&self, registry: &str) -> Result<Option<Credential>, CredentialError> {
        let names: &[&str] = match registry {
            DEFAULT_REGISTRY => {
                &[DOCKER_HUB, "index.docker.io", "docker.io", "registry-1.docker.io"]
            }
            other => &[other],
        };
        let helper = names.iter().find_map(|name| self.config.helpers.get(*name));
        if let Some(helper) = helper.or(self.config.store.as_ref())
            && let Some(found) = ask_helper(helper, names[0])?
        {
            return Ok(Some(found));
        }
        let matching = |name: &&str| {
            self.config.auths.iter().find(|(key, _)| *key == *name || host(key) == *name)
        };
        match names.iter().find_map(matching) {
            Some((_, auth)) => self.credential(auth),
            None => Ok(None),
        }
    }

    fn credential(&self, auth: &Auth) -> Result<Option<Credential>, CredentialError> {
        let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = set(&auth.identitytoken) {
            return Ok(Some(Credential::Identity(Secret(token))));
        }
        if let Some(token) = set(&auth.registrytoken) {
            return Ok(Some(Credential::Registry(Secret(token))));
        }
        if let Some(encoded) = set(&auth.auth) {
            let malformed = || CredentialError::Config {
                path: self.path.clone(),
                reason: "an `auth` is not base64 of `user:password`".to_owned(),
            };
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(encoded.trim())
                .map_err(|_| malformed())?;
            let text = String::from_utf8(bytes).map_err(|_| malformed())?;
            let (user, password) = text.split_once(':').ok_or_else(malformed)?;
            let password = Secret(password.trim_end_matches('\0').to_owned());
            return Ok(Some(Credential::Basic { user: user.to_owned(), password }));
        }
        match (set(&auth.username), set(&auth.password)) {
            (Some(user), Some(password)) => {
                Ok(Some(Credential::Basic { user, password: Secret(password) }))
            }
            _ => Ok(None),
        }
    }
}

/// The host of a key of `auths`, which may be an address like `https://host/v1/`.
fn host(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    rest.split('/').next().unwrap_or(rest)
}

fn read_limited(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        return Err(io::Error::other(format!("more than {LIMIT} bytes")));
    }
    Ok(bytes)
}

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username")]
    user: String,
    #[serde(rename = "Secret")]
    secret: String,
}

fn ask_helper(name: &str, registry: &str) -> Result<Option<Credential>, CredentialError> {
    let helper = format!("docker-credential-{name}");
    let failed = |reason: String| CredentialError::Helper {
        helper: helper.clone(),
        registry: registry.to_owned(),
        reason,
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(failed("its name is not a plain word".to_owned()));
    }
    let (succeeded, output) = run_helper(&helper, registry).map_err(|e| failed(e.to_string()))?;
    if !succeeded {
        // Docker's helpers say so on their standard output.
        let text = String::from_utf8_lossy(&output);
        if text.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed("it ended with an error".to_owned()));
    }
    let answer: HelperAnswer = serde_json::from_slice(&output)
        .map_err(|_| failed("its answer is not what the protocol asks for".to_owned()))?;
    if answer.user == "<token>" {
        return Ok(Some(Credential::Identity(Secret(answer.secret))));
    }
    Ok(Some(Credential::Basic { user: answer.user, password: Secret(answer.secret) }))
}

/// Runs `PROGRAM get` and gives its success and output. It is ended when it takes too long or says
/// too much.
fn run_helper(program: &str, registry: &str) -> io::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let result = converse(&mut child, registry);
    if result.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    result
}

fn converse(child: &mut Child, registry: &str) -> io::Result<(bool, Vec<u8>)> {
    let mut input = child.stdin.take().expect("stdin is a pipe");
    // A helper that does not read its input breaks the pipe: its answer decides.
    let _ = input.write_all(registry.as_bytes());
    drop(input);
    let output = child.stdout.take().expect("stdout is a pipe");
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(read_limited(output)));
    let deadline = Instant::now() + HELPER_TIMEOUT;
    let slow = || io::Error::new(io::ErrorKind::TimedOut, "it did not answer within 30 seconds");
    let output = receiver.recv_timeout(HELPER_TIMEOUT).map_err(|_| slow())??;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status.success(), output));
        }
        if Instant::now() > deadline {
            return Err(slow());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(json: &str) -> Credentials {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), json).unwrap();
        Credentials::from_folder(folder.path()).unwrap()
    }

    fn basic(user: &str, password: &str) -> Credential {
        Credential::Basic { user: user.to_owned(), password: Secret::new(password) }
    }

    #[test]
    fn entries_are_found_by_their_host() {
        let found = credentials(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "dTpwOnE="},
                "reg.example:5000": {"username": "a", "password": "b"},
                "https://old.example/v2/": {"auth": "dTpw"},
                "token.example": {"auth": "dTpw", "identitytoken": "t"},
                "empty.example": {}
            }}"#,
        );
        for (registry, expect) in [
            ("docker.io", Some(basic("u", "p:q"))),
            ("reg.example:5000", Some(basic("a", "b"))),
            ("reg.example", None),
            ("old.example", Some(basic("u", "p"))),
            ("token.example", Some(Credential::Identity(Secret::new("t")))),
            ("empty.example", None),
        ] {
            assert_eq!(found.get(registry).unwrap(), expect, "{registry}");
        }
        assert!(!format!("{:?} {:?}", found, found.get("docker.io")).contains("p:q"));
    }

    #[test]
    fn a_broken_configuration_is_an_error_without_its_values() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Credentials::from_folder(folder.path()).unwrap().get("x").unwrap(), None);
        std::fs::write(folder.path().join("config.json"), r#"{"auths": {"x": "hunter2"}}"#)
            .unwrap();
        let error = Credentials::from_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("line 1") && !error.contains("hunter2"), "{error}");
        assert!(credentials(r#"{"auths": {"x": {"auth": "%"}}}"#).get("x").is_err());
    }

    #[test]
    fn a_failing_helper_is_an_error() {
        let found = credentials(r#"{"credHelpers": {"x": "kiln-test-missing", "y": "../evil"}}"#);
        let error = found.get("x").unwrap_err().to_string();
        assert!(error.contains("docker-credential-kiln-test-missing"), "{error}");
        assert!(found.get("y").unwrap_err().to_string().contains("plain word"));
        assert_eq!(found.get("z").unwrap(), None);
    }

    #[test]
    fn helpers_are_asked_by_dockers_protocol() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("helper");
        let check = |script: &str| {
            use std::os::unix::fs::PermissionsExt;
            std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
            run_helper(program.to_str().unwrap(), "reg.example")
        };
        let (good, output) =
            check(r#"read r; printf '{"Username":"%s","Secret":"s"}' "$r""#).unwrap();
        assert!(good);
        assert_eq!(output, br#"{"Username":"reg.example","Secret":"s"}"#);
        assert!(!check("exit 1").unwrap().0);
        assert!(check("yes").is_err());
    }
}
