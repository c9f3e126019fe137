//! Tokens and what else goes into `Authorization`: asked for once, kept until they expire.

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use serde::Deserialize;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE};
use ureq::http::{Method, Uri};

use super::RegistryError;
use super::auth::Challenge;
use super::hosts::{HostSettings, Origin, may_ask_realm, may_send_credentials};
use super::transport::{Payload, Transport};
use crate::credential::{Credential, Secret};

/// Bytes of a token server's answer.
const ANSWER_LIMIT: u64 = 1 << 20;

/// Lifetime of a token that does not say; the specification's default.
const LIFETIME: u64 = 60;

/// Where a header may be used: an origin and what it allows.
type Place = (Origin, String);

/// The headers that were earned so far.
#[derive(Debug, Default)]
pub struct Tokens {
    kept: Mutex<HashMap<Place, (Secret, Instant)>>,
}

impl Tokens {
    /// The header for an origin and scope, unless it is about to expire.
    pub fn get(&self, origin: &Origin, scope: &str) -> Option<Secret> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (header, expires) = kept.get(&(origin.clone(), scope.to_owned()))?;
        (*expires > Instant::now()).then(|| header.clone())
    }

    /// Keeps a header.
    pub fn keep(&self, origin: &Origin, scope: &str, header: Secret, lifetime: Duration) {
        let expires = Instant::now() + lifetime;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert((origin.clone(), scope.to_owned()), (header, expires));
    }
}

/// Who asks whom for what.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// How to reach a token server.
    pub transport: &'a Transport,
    /// The user's rules.
    pub settings: &'a HostSettings,
    /// The registry that sent the challenge.
    pub origin: &'a Origin,
    /// Its credentials.
    pub credential: Option<&'a Credential>,
    /// What the token must allow, separated by spaces.
    pub scope: &'a str,
}

/// Answers a challenge: the header and how long it serves; none when there is nothing to show.
///
/// # Errors
/// When the token server must not be asked, cannot be reached, or refuses.
pub fn answer(
    challenge: &Challenge,
    asking: &Asking<'_>,
) -> Result<Option<(Secret, Duration)>, RegistryError> {
    const LONG: Duration = Duration::from_secs(24 * 3600);
    match (challenge, asking.credential) {
        (_, Some(Credential::Registry(token))) => {
            Ok(Some((Secret::new(format!("Bearer {}", token.expose())), LONG)))
        }
        (Challenge::Basic, Some(Credential::Basic { user, password })) => {
            Ok(Some((basic(user, password), LONG)))
        }
        (Challenge::Basic, _) => Ok(None),
        (Challenge::Bearer { realm, service, .. }, _) => {
            bearer(realm, service.as_deref(), asking).map(Some)
        }
    }
}

fn basic(user: &str, password: &Secret) -> Secret {
    let text = format!("{user}:{}", password.expose());
    Secret::new(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text)))
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

fn bearer(
    realm: &str,
    service: Option<&str>,
    asking: &Asking<'_>,
) -> Result<(Secret, Duration), RegistryError> {
    const OPERATION: &str = "ask for a token at";
    let refused = |reason: String| RegistryError::Unauthorized {
        operation: OPERATION,
        url: plain(realm).to_owned(),
        reason,
    };
    let uri: Uri = realm.parse().map_err(|_| refused("it is not an address".to_owned()))?;
    let server = Origin::of(&uri)
        .filter(|_| !uri.authority().is_some_and(|a| a.as_str().contains('@')))
        .ok_or_else(|| refused("it is not an http address".to_owned()))?;
    if !may_ask_realm(asking.origin, &server) {
        let from = asking.origin;
        return Err(refused(format!("`{from}` may not name a token server there")));
    }
    if asking.credential.is_some() && !may_send_credentials(asking.origin, &server, asking.settings)
    {
        return Err(refused(format!(
            "`{}` is of another domain than the registry `{}`, whose credentials it would get; \
             name it as a trusted token server to allow this",
            server.host(),
            asking.origin.host(),
        )));
    }
    let (method, uri, headers, form) = request(&uri, service, asking)?;
    let payload =
        form.as_ref().map_or(Payload::None, |form| Payload::Bytes(form.expose().as_bytes()));
    let mut response =
        asking.transport.send(&method, &uri, &headers, payload).map_err(|error| {
            let url = plain(realm).to_owned();
            RegistryError::Connection { operation: OPERATION, url, reason: error.to_string() }
        })?;
    let status = response.status().as_u16();
    if status != 200 {
        return Err(refused(format!("the token server answered {status}")));
    }
    let mut bytes = Vec::new();
    response
        .body_mut()
        .as_reader()
        .take(ANSWER_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| refused(format!("the answer broke off: {e}")))?;
    if bytes.len() as u64 > ANSWER_LIMIT {
        return Err(refused(format!("the answer has more than {ANSWER_LIMIT} bytes")));
    }
    let answer: Answer = serde_json::from_slice(&bytes)
        .map_err(|_| refused("the answer is not what the protocol asks for".to_owned()))?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(refused("the answer holds no token".to_owned()));
    }
    // A tenth less than promised: the token must outlive the request that it is used for.
    let seconds = answer.expires_in.unwrap_or(LIFETIME).clamp(LIFETIME, 24 * 3600);
    let lifetime = Duration::from_secs(seconds - seconds / 10);
    Ok((Secret::new(format!("Bearer {token}")), lifetime))
}

type TokenRequest = (Method, Uri, Vec<(ureq::http::HeaderName, String)>, Option<Secret>);

fn request(
    realm: &Uri,
    service: Option<&str>,
    asking: &Asking<'_>,
) -> Result<TokenRequest, RegistryError> {
    let mut fields: Vec<(&str, &str)> = Vec::new();
    fields.extend(service.map(|service| ("service", service)));
    if let Some(Credential::Identity(token)) = asking.credential {
        fields.push(("scope", asking.scope));
        fields.extend([
            ("grant_type", "refresh_token"),
            ("client_id", "kiln"),
            ("refresh_token", token.expose()),
        ]);
        let form = "application/x-www-form-urlencoded".to_owned();
        let headers = vec![(CONTENT_TYPE, form)];
        return Ok((Method::POST, realm.clone(), headers, Some(Secret::new(encode(&fields)))));
    }
    fields.extend(asking.scope.split(' ').filter(|s| !s.is_empty()).map(|s| ("scope", s)));
    let mut headers = Vec::new();
    if let Some(Credential::Basic { user, password }) = asking.credential {
        headers.push((AUTHORIZATION, basic(user, password).expose().to_owned()));
    }
    let text = realm.to_string();
    let joint = if text.contains('?') { '&' } else { '?' };
    let uri = format!("{text}{joint}{}", encode(&fields)).parse().map_err(|_| {
        let reason = "its parameters make no address".to_owned();
        RegistryError::Answer { url: plain(&text).to_owned(), reason }
    })?;
    Ok((Method::GET, uri, headers, None))
}

/// An address without query and what follows: it may hold secrets.
fn plain(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
}

/// Fields as `application/x-www-form-urlencoded`.
fn encode(fields: &[(&str, &str)]) -> String {
    let pairs: Vec<String> =
        fields.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
    pairs.join("&")
}

/// Percent-encodes everything but unreserved characters, `:`, `/` and `,`.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/,".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_escaped() {
        let fields = [("scope", "repository:a/b:pull,push"), ("service", "a b&c=d")];
        assert_eq!(encode(&fields), "scope=repository:a/b:pull,push&service=a%20b%26c%3Dd");
    }
}
