//! Requests to registries: authentication, redirects, retries; manifests and blobs.

use std::fmt;
use std::io::{self, Read};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kiln_cache::{Descriptor, Digest, Verifier};
use ureq::Body;
use ureq::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, RANGE, WWW_AUTHENTICATE};
use ureq::http::{HeaderMap, HeaderName, Method, Response, Uri};

use super::RegistryError;
use super::auth::{Challenge, challenges};
use super::hosts::{Endpoint, HostSettings, Origin, join};
use super::retry::{self, Policy};
use super::token::{Asking, Tokens, answer};
use super::transport::{Payload, Timeouts, Transport};
use crate::credential::Credentials;
use crate::json;
use crate::reference::Reference;
use crate::{limits, media_type};

/// Redirects that are followed for one request.
const REDIRECTS: usize = 10;

/// Bytes of an error's body that are read.
const ERROR_BYTES: u64 = 64 << 10;

/// How registries are spoken to.
#[derive(Clone, Debug, Default)]
pub struct RegistrySettings {
    /// Which are special.
    pub hosts: HostSettings,
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// What to do about what is likely to pass.
    pub retries: Policy,
    /// Blobs above this many bytes are uploaded in chunks of it; none: always as one.
    pub chunk: Option<u64>,
    /// No other machine is asked for anything.
    pub offline: bool,
}

/// A client for all registries; share it, it keeps connections and tokens.
pub struct RegistryClient {
    settings: RegistrySettings,
    credentials: Credentials,
    transport: OnceLock<Transport>,
    tokens: Tokens,
    complaints: Mutex<Vec<String>>,
}

/// Who may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Mirrors, and at last the registry.
    Mirrors,
    /// The registry alone.
    Registry,
}

impl fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryClient").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// A manifest or index as a registry gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their media type, digest and size.
    pub descriptor: Descriptor,
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Call<'a> {
    /// For messages: "cannot {operation} `url`".
    pub operation: &'static str,
    pub method: Method,
    pub uri: Uri,
    pub headers: Vec<(HeaderName, String)>,
    pub payload: Payload<'a>,
    /// What a token must allow.
    pub scope: &'a str,
}

/// An address for messages: without its query, which may hold a signature.
pub(crate) fn shown(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |a| a.as_str());
    format!("{}://{authority}{}", uri.scheme_str().unwrap_or_default(), uri.path())
}

impl RegistryClient {
    /// A client; nothing is read or connected yet.
    #[must_use]
    pub fn new(settings: RegistrySettings, credentials: Credentials) -> Self {
        let (transport, tokens) = (OnceLock::new(), Tokens::default());
        Self { settings, credentials, transport, tokens, complaints: Mutex::default() }
    }

    /// What it was made with.
    #[must_use]
    pub fn settings(&self) -> &RegistrySettings {
        &self.settings
    }

    /// How it speaks HTTP.
    pub(crate) fn transport(&self) -> &Transport {
        self.transport.get_or_init(|| Transport::new(self.settings.timeouts))
    }

    /// The manifest or index that a reference names, and who answered.
    ///
    /// # Errors
    /// When no endpoint has it, or what it gave is not what it should be.
    pub fn manifest(&self, reference: &Reference) -> Result<Document, RegistryError> {
        self.manifest_at(reference, reference.selector(), reference.digest())
    }

    /// A manifest of the reference's repository by digest.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    pub fn manifest_by_digest(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<Document, RegistryError> {
        self.manifest_at(reference, digest.as_str(), Some(digest))
    }

    fn manifest_at(
        &self,
        reference: &Reference,
        selector: &str,
        digest: Option<&Digest>,
    ) -> Result<Document, RegistryError> {
        let accept = [
            media_type::INDEX,
            media_type::MANIFEST,
            media_type::DOCKER_INDEX,
            media_type::DOCKER_MANIFEST,
        ]
        .join(", ");
        let path = format!("/v2/{}/manifests/{selector}", reference.repository());
        let scope = pull_scope(reference);
        let what = if digest.is_some() { selector } else { &reference.familiar() };
        self.first_endpoint(reference, Trust::Mirrors, |endpoint| {
            let call = Call {
                operation: "fetch",
                method: Method::GET,
                uri: address(endpoint, &path)?,
                headers: vec![(ACCEPT, accept.clone())],
                payload: Payload::None,
                scope: &scope,
            };
            let uri = call.uri.clone();
            let response = self.expect(endpoint, call, what, &[200])?;
            read_document(response, &uri, digest)
        })
    }

    /// A small blob, whole, verified.
    ///
    /// # Errors
    /// When no endpoint has it, it is larger than `limit`, or it is not what the descriptor says.
    pub fn small_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let digest = &descriptor.digest;
        let failed = |source| RegistryError::Blob { digest: digest.clone(), source };
        if descriptor.size > limit {
            let reason = format!("{} bytes, more than {limit}", descriptor.size);
            return Err(failed(io::Error::other(reason)));
        }
        let mut bytes = Vec::new();
        let blob = self.blob(reference, descriptor)?;
        kiln_cache::VerifyingReader::new(blob, digest.clone(), Some(descriptor.size))
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        Ok(bytes)
    }

    /// Opens a blob for reading. The bytes are those the registry sends: the caller verifies them.
    /// A connection that breaks is resumed where it broke.
    ///
    /// # Errors
    /// When no endpoint has it.
    pub fn blob<'a>(
        &'a self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<BlobReader<'a>, RegistryError> {
        self.blob_from(reference, descriptor, Trust::Mirrors)
    }

    /// [`Self::blob`], from the mirrors too or from the registry alone.
    pub(crate) fn blob_from<'a>(
        &'a self,
        reference: &Reference,
        descriptor: &Descriptor,
        trust: Trust,
    ) -> Result<BlobReader<'a>, RegistryError> {
        let path = format!("/v2/{}/blobs/{}", reference.repository(), descriptor.digest);
        let scope = pull_scope(reference);
        self.first_endpoint(reference, trust, |endpoint| {
            let mut reader = BlobReader {
                client: self,
                endpoint: endpoint.clone(),
                uri: address(endpoint, &path)?,
                scope: scope.clone(),
                body: None,
                position: 0,
                size: descriptor.size,
                failures: 0,
                resumed: 0,
                waited: Duration::ZERO,
                waited_from: 0,
            };
            reader.connect()?;
            Ok(reader)
        })
    }

    /// What mirrors did wrong since the last call, a line each.
    pub fn complaints(&self) -> Vec<String> {
        std::mem::take(&mut *self.complaints.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn complain(&self, complaint: String) {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).push(complaint);
    }

    /// Whether there are others to ask than the registry.
    pub(crate) fn has_mirrors(&self, reference: &Reference) -> bool {
        self.settings.hosts.endpoints(reference.registry()).len() > 1
    }

    /// Asks the endpoints in turn. A mirror that fails in any way is passed over; one that has not what is asked for
    /// does nothing wrong.
    fn first_endpoint<T>(
        &self,
        reference: &Reference,
        trust: Trust,
        ask: impl Fn(&Endpoint) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let endpoints = self.settings.hosts.endpoints(reference.registry());
        let (last, mirrors) = endpoints.split_last().expect("the registry itself is one");
        for mirror in mirrors.iter().filter(|_| trust == Trust::Mirrors) {
            match ask(mirror) {
                Ok(found) => return Ok(found),
                Err(RegistryError::NotFound { .. }) => {}
                Err(error) => self.complain(format!("the mirror {}: {error}", mirror.base)),
            }
        }
        ask(last)
    }

    /// [`Self::request`], with statuses other than these as errors.
    pub(super) fn expect(
        &self,
        endpoint: &Endpoint,
        call: Call<'_>,
        what: &str,
        statuses: &[u16],
    ) -> Result<Response<Body>, RegistryError> {
        let (operation, url) = (call.operation, shown(&call.uri));
        let response = self.request(endpoint, call)?;
        let status = response.status().as_u16();
        if statuses.contains(&status) {
            return Ok(response);
        }
        let message = error_message(response);
        Err(match status {
            404 => RegistryError::NotFound { what: what.to_owned(), url },
            401 | 403 => {
                let reason = format!("the registry answered {status}{message}");
                RegistryError::Unauthorized { operation, url, reason }
            }
            _ => RegistryError::Status { operation, url, status, message },
        })
    }

    /// Sends a request to an endpoint: with credentials if it asks for them, again if what failed is
    /// likely to pass; redirects of GET and HEAD are followed.
    pub(super) fn request(
        &self,
        endpoint: &Endpoint,
        mut call: Call<'_>,
    ) -> Result<Response<Body>, RegistryError> {
        let home = Origin::of(&call.uri).ok_or_else(|| no_address(&call.uri))?;
        let own: Uri = endpoint.base.parse().map_err(|_| no_address(&call.uri))?;
        let follow = matches!(call.method, Method::GET | Method::HEAD);
        for _ in 0..=REDIRECTS {
            let at_home = Origin::of(&call.uri) == Origin::of(&own);
            let response = self.authenticated(endpoint, &call, at_home)?;
            let status = response.status().as_u16();
            if !follow || !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let next = redirect(&call.uri, &response, home.is_secure())?;
            call.uri = next;
        }
        let reason = format!("more than {REDIRECTS} redirects");
        Err(RegistryError::Answer { url: shown(&call.uri), reason })
    }

    /// One hop; credentials are only shown `at_home`.
    fn authenticated(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
        at_home: bool,
    ) -> Result<Response<Body>, RegistryError> {
        if !at_home {
            return self.persistent(call, None);
        }
        let origin = Origin::of(&call.uri).ok_or_else(|| no_address(&call.uri))?;
        let known = self.tokens.get(&origin, call.scope);
        let response = self.persistent(call, known.as_ref().map(|header| header.expose()))?;
        if response.status().as_u16() != 401 {
            return Ok(response);
        }
        let credential = self.credentials.get(&endpoint.registry)?;
        let asking = Asking {
            transport: self.transport(),
            settings: &self.settings.hosts,
            origin: &origin,
            credential: credential.as_ref(),
            scope: call.scope,
        };
        let Some(challenge) = chosen_challenge(response.headers()) else { return Ok(response) };
        let Some((header, lifetime)) = answer(&challenge, &asking)? else {
            let reason = format!("no credentials are known for `{}`", endpoint.registry);
            let (operation, url) = (call.operation, shown(&call.uri));
            return Err(RegistryError::Unauthorized { operation, url, reason });
        };
        let response = self.persistent(call, Some(header.expose()))?;
        if response.status().as_u16() != 401 {
            self.tokens.keep(&origin, call.scope, header, lifetime);
        }
        Ok(response)
    }

    /// Sends until it succeeds, fails for good, or patience ends.
    pub(crate) fn persistent(
        &self,
        call: &Call<'_>,
        authorization: Option<&str>,
    ) -> Result<Response<Body>, RegistryError> {
        if self.settings.offline {
            return Err(RegistryError::Offline { url: shown(&call.uri) });
        }
        let mut headers = call.headers.clone();
        headers.extend(authorization.map(|value| (AUTHORIZATION, value.to_owned())));
        let (mut attempt, begun) = (1, Instant::now());
        // What became of a broken upload only who began it can find out.
        let again = !matches!(call.payload, Payload::File { .. });
        let retries = &self.settings.retries;
        loop {
            let result = self.transport().send(&call.method, &call.uri, &headers, call.payload);
            let wait = match &result {
                Ok(response) if again && retry::is_transient_status(response.status().as_u16()) => {
                    retries.wait_as_asked(attempt, response.headers(), begun.elapsed())
                }
                Err(error) if again && retry::is_transient_error(error) => {
                    retries.wait(attempt, None).filter(|_| begun.elapsed() < retries.patience)
                }
                _ => None,
            };
            if let Some(wait) = wait {
                std::thread::sleep(wait);
                attempt += 1;
                continue;
            }
            return result.map_err(|error| RegistryError::Connection {
                operation: call.operation,
                url: shown(&call.uri),
                reason: error.to_string(),
            });
        }
    }
}

fn no_address(uri: &Uri) -> RegistryError {
    RegistryError::Answer { url: shown(uri), reason: "it is no http address".to_owned() }
}

/// Where a redirect leads. Never from https to http.
fn redirect(from: &Uri, response: &Response<Body>, secure: bool) -> Result<Uri, RegistryError> {
    let wrong =
        |reason: &str| RegistryError::Answer { url: shown(from), reason: reason.to_owned() };
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| wrong("a redirect without a location"))?;
    let next = join(from, location).ok_or_else(|| wrong("a redirect to no http address"))?;
    if secure && next.scheme_str() != Some("https") {
        return Err(wrong("a redirect from https to http"));
    }
    Ok(next)
}

/// The strongest challenge that we can answer: a token before a password.
fn chosen_challenge(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let mut all: Vec<Challenge> = values.flat_map(challenges).collect();
    all.sort_by_key(|challenge| *challenge == Challenge::Basic);
    all.into_iter().next()
}

pub(super) fn address(endpoint: &Endpoint, path: &str) -> Result<Uri, RegistryError> {
    let text = format!("{}{path}", endpoint.base);
    text.parse().map_err(|_| RegistryError::Answer {
        url: text,
        reason: "it is no http address".to_owned(),
    })
}

fn pull_scope(reference: &Reference) -> String {
    format!("repository:{}:pull", reference.repository())
}

/// What a registry says about an error, as `: text`; at most a line, without control characters.
fn error_message(mut response: Response<Body>) -> String {
    let mut bytes = Vec::new();
    let read = response.body_mut().as_reader().take(ERROR_BYTES).read_to_end(&mut bytes);
    let Ok(value) = read
        .map_err(drop)
        .and_then(|_| serde_json::from_slice::<serde_json::Value>(&bytes).map_err(drop))
    else {
        return String::new();
    };
    let errors = value.get("errors").and_then(|errors| errors.as_array()).into_iter().flatten();
    let texts: Vec<&str> = errors
        .filter_map(|e| e.get("message").or(e.get("code")).and_then(|text| text.as_str()))
        .collect();
    if texts.is_empty() {
        return String::new();
    }
    let text: String = texts.join(", ").chars().filter(|c| !c.is_control()).take(300).collect();
    format!(": {text}")
}

/// Reads a manifest or index, verified against its digest and against what its header says it is.
fn read_document(
    mut response: Response<Body>,
    uri: &Uri,
    expected: Option<&Digest>,
) -> Result<Document, RegistryError> {
    let wrong = |reason: String| RegistryError::Answer { url: shown(uri), reason };
    let mut bytes = Vec::new();
    response
        .body_mut()
        .as_reader()
        .take(limits::DOCUMENT_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| wrong(format!("the answer broke off: {e}")))?;
    if bytes.len() as u64 > limits::DOCUMENT_BYTES {
        return Err(wrong(format!("a manifest of more than {} bytes", limits::DOCUMENT_BYTES)));
    }
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let said: Option<Digest> = header("docker-content-digest").and_then(|text| text.parse().ok());
    for digest in expected.into_iter().chain(said.as_ref()) {
        let mut verifier = Verifier::new(digest.clone());
        verifier.update(&bytes);
        verifier.finish().map_err(|mismatch| wrong(mismatch.to_string()))?;
    }
    let digest = expected.cloned().unwrap_or_else(|| Digest::sha256(&bytes));
    let what = "manifest";
    let value = json::parse_value(what, &bytes, limits::DOCUMENT_BYTES)
        .map_err(|source| RegistryError::Document { what: shown(uri), source })?;
    let is_index = value.get("manifests").is_some();
    let content_type = header(CONTENT_TYPE.as_str())
        .and_then(|text| text.split(';').next())
        .map(str::trim)
        .filter(|kind| media_type::is_index(kind) || media_type::is_manifest(kind));
    if content_type.is_some_and(|kind| media_type::is_index(kind) != is_index) {
        return Err(wrong("what it sent is not of the type it says".to_owned()));
    }
    let inner = value.get("mediaType").and_then(|kind| kind.as_str());
    let fallback = if is_index { media_type::INDEX } else { media_type::MANIFEST };
    let kind = inner.or(content_type).unwrap_or(fallback);
    let descriptor = Descriptor::new(kind, digest, bytes.len() as u64);
    Ok(Document { bytes, descriptor })
}

/// A blob while it is downloaded. At most one byte more than its size is read.
pub struct BlobReader<'a> {
    client: &'a RegistryClient,
    endpoint: Endpoint,
    uri: Uri,
    scope: String,
    body: Option<ureq::BodyReader<'static>>,
    position: u64,
    size: u64,
    /// Connections that broke before they brought [`PROGRESS`], one after the other.
    failures: u32,
    /// Where this connection began.
    resumed: u64,
    /// How long the bytes from `waited_from` on took, as far as they were waited for.
    waited: Duration,
    waited_from: u64,
}

/// A connection that brought so many bytes was of use, so that a path which breaks again and again ends too.
const PROGRESS: u64 = 64 << 10;

/// Fewer bytes within [`Timeouts::silence`] are silence.
const LEAST: u64 = 1 << 10;

impl fmt::Debug for BlobReader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobReader").field("uri", &self.uri.path()).finish_non_exhaustive()
    }
}

impl BlobReader<'_> {
    /// Asks for what is still missing.
    fn connect(&mut self) -> Result<(), RegistryError> {
        let mut headers = Vec::new();
        if self.position > 0 {
            headers.push((RANGE, format!("bytes={}-", self.position)));
        }
        let call = Call {
            operation: "fetch",
            method: Method::GET,
            uri: self.uri.clone(),
            headers,
            payload: Payload::None,
            scope: &self.scope,
        };
        let what = self.uri.path().rsplit('/').next().unwrap_or_default().to_owned();
        let response = self.client.expect(&self.endpoint, call, &what, &[200, 206])?;
        let partial = response.status().as_u16() == 206;
        let starts = response.headers().get("content-range").and_then(|v| v.to_str().ok());
        let wanted = format!("bytes {}-", self.position);
        if partial && !starts.is_some_and(|range| range.starts_with(&wanted)) {
            let reason = "it sent another part than the one asked for".to_owned();
            return Err(RegistryError::Answer { url: shown(&self.uri), reason });
        }
        let mut body = response.into_body().into_reader();
        if !partial && self.position > 0 {
            // It does not know ranges: what we have is passed over.
            let mut known = (&mut body).take(self.position);
            io::copy(&mut known, &mut io::sink()).map_err(|e| RegistryError::Connection {
                operation: "fetch",
                url: shown(&self.uri),
                reason: e.to_string(),
            })?;
        }
        self.body = Some(body);
        (self.resumed, self.waited_from, self.waited) =
            (self.position, self.position, Duration::ZERO);
        Ok(())
    }

    /// Notes what a read brought, and how long that took.
    ///
    /// # Errors
    /// The other side sends next to nothing.
    fn advance(&mut self, count: u64, took: Duration) -> io::Result<()> {
        self.position += count;
        self.waited += took;
        if self.position - self.waited_from >= LEAST {
            (self.waited_from, self.waited) = (self.position, Duration::ZERO);
        }
        let silence = self.client.settings.timeouts.silence;
        if self.waited <= silence || self.position >= self.size {
            return Ok(());
        }
        let reason = format!("fewer than {LEAST} bytes in {} seconds", silence.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, reason))
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() || self.position > self.size {
            return Ok(0);
        }
        loop {
            let Some(body) = &mut self.body else {
                self.connect().map_err(io::Error::other)?;
                continue;
            };
            let asked = Instant::now();
            let error = match body.read(out) {
                Ok(0) if self.position < self.size => {
                    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended early")
                }
                Ok(count) => match self.advance(count as u64, asked.elapsed()) {
                    Ok(()) => return Ok(count),
                    Err(silent) => {
                        self.position -= count as u64;
                        silent
                    }
                },
                Err(error) => error,
            };
            self.body = None;
            self.failures =
                if self.position - self.resumed < PROGRESS { self.failures + 1 } else { 1 };
            let wait = self.client.settings.retries.wait(self.failures, None);
            match wait.filter(|_| retry::is_transient_io(&error)) {
                Some(wait) => std::thread::sleep(wait),
                None => return Err(error),
            }
        }
    }
}
