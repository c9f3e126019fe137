//! The registry client with the user's settings and credentials, and pushing.

use std::collections::HashMap;

use kiln_cache::{Descriptor, Digest, Store};
use kiln_image::credential::Credentials;
use kiln_image::reference::Reference;
use kiln_image::registry::{
    Bring, PushRequest, RegistryClient, RegistryError, RegistrySettings, push,
};
use kiln_image::source::Sources;

use crate::failure::{Failure, chain};
use crate::settings::Settings;

/// What to do about something that is missing offline.
pub(crate) const OFFLINE_HELP: &str =
    "build or `kiln pull` once without --offline, then it is there";

/// Where images come from; it connects when it is used.
///
/// # Errors
/// Docker's configuration file, which holds credentials, is malformed.
pub(crate) fn sources(settings: &Settings, store: &Store) -> Result<Sources, Failure> {
    Ok(Sources::new(store.clone(), registry_settings(settings), credentials()?))
}

/// A client of its own; the `insecure` host is spoken to by plain http.
///
/// # Errors
/// As [`sources`].
pub(crate) fn client(
    settings: &Settings,
    insecure: Option<&str>,
) -> Result<RegistryClient, Failure> {
    let mut registry = registry_settings(settings);
    registry.hosts.insecure.extend(insecure.map(str::to_owned));
    Ok(RegistryClient::new(registry, credentials()?))
}

fn credentials() -> Result<Credentials, Failure> {
    Credentials::from_environment()
        .map_err(|e| Failure::environment(chain(&e)).hint("mend or remove ~/.docker/config.json"))
}

fn registry_settings(settings: &Settings) -> RegistrySettings {
    let mut registry = RegistrySettings { offline: settings.offline, ..Default::default() };
    for (host, config) in &settings.config.registry {
        if config.http {
            registry.hosts.insecure.insert(host.clone());
        }
        if !config.mirrors.is_empty() {
            registry.hosts.mirrors.insert(host.clone(), config.mirrors.clone());
        }
    }
    registry
}

/// Pushes an image of the store under all its names. Blobs that the store has not are mounted from `repositories`, or
/// brought by `bring`.
///
/// # Errors
/// No name; a registry does not take it.
pub(crate) fn push_image(
    settings: &Settings,
    store: &Store,
    root: &Descriptor,
    names: &[String],
    repositories: HashMap<Digest, Reference>,
    bring: &Bring<'_>,
) -> Result<(), Failure> {
    if names.is_empty() {
        return Err(
            Failure::usage("a push needs a name").hint("name the image with -t REGISTRY/NAME:TAG")
        );
    }
    let targets = names
        .iter()
        .map(|name| name.parse::<Reference>().map_err(|e| Failure::usage(chain(&e))))
        .collect::<Result<Vec<_>, _>>()?;
    let request =
        PushRequest { root: root.clone(), targets, by_digest: false, sources: repositories };
    push(sources(settings, store)?.client(), store, &request, bring).map_err(|e| failure(&e))
}

/// A registry's answer as an error with a remedy.
pub(crate) fn failure(error: &RegistryError) -> Failure {
    let failure = Failure::environment(chain(error));
    match error {
        RegistryError::Unauthorized { .. } => {
            failure.hint("log in with `docker login` or `podman login`: Kiln reads ~/.docker/config.json")
        }
        RegistryError::Connection { .. } => failure.hint(
            "a registry that speaks plain http needs `[registry.\"HOST:PORT\"] http = true` in the configuration",
        ),
        RegistryError::Offline { .. } => failure.hint(OFFLINE_HELP),
        RegistryError::NotFound { .. } => failure.hint("check name and tag"),
        _ => failure,
    }
}
