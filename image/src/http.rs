//! Downloads by URL, for `ADD https://…` and contexts that are an address.
//!
//! What a URL gave is kept as a blob with a note of its `ETag`: the next build asks the server
//! whether it is still the same, and with a checksum, or offline, asks nobody. The server's words about status are
//! BuildKit's. Names and passwords in a URL are sent to its origin only and never shown.

use std::io::{self, Read, Write};

use flate2::read::MultiGzDecoder;
use kiln_cache::{Digest, Store, StoreError};
use serde::{Deserialize, Serialize};
use ureq::Body;
use ureq::http::header::{CONTENT_ENCODING, ETAG, IF_NONE_MATCH, LAST_MODIFIED, LOCATION};
use ureq::http::{HeaderName, Method, Response, Uri};

use crate::credential::Secret;
use crate::limits::{self, Budget};
use crate::registry::RegistryClient;
use crate::registry::RegistryError;
use crate::registry::client::{Call, shown};
use crate::registry::hosts::{Origin, join};
use crate::registry::retry::is_transient_io;
use crate::registry::transport::Payload;
use crate::source::FetchProgress;

/// Redirects that are followed, as Go's client does.
const REDIRECTS: usize = 10;

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Not an address.
    #[error("`{url}` is not an http address")]
    Address {
        /// What was given, without its query.
        url: String,
    },
    /// The server says no.
    #[error("cannot download `{url}`: invalid response status {status}")]
    Status {
        /// Which address.
        url: String,
        /// HTTP's status.
        status: u16,
    },
    /// A redirect that is not followed.
    #[error("cannot download `{url}`: {reason}")]
    Redirect {
        /// Which address.
        url: String,
        /// Why.
        reason: &'static str,
    },
    /// The content is not the expected.
    #[error("cannot download `{url}`: digest mismatch {actual}: {expected}")]
    Checksum {
        /// Which address.
        url: String,
        /// What came.
        actual: Digest,
        /// What was to come.
        expected: Digest,
    },
    /// No connection, or it broke.
    #[error(transparent)]
    Connection(#[from] RegistryError),
    /// The body broke off, or is no gzip although it says so.
    #[error("cannot download `{url}`: {source}")]
    Body {
        /// Which address.
        url: String,
        /// Why.
        source: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody ended it.
    #[error("cancelled")]
    Cancelled,
}

/// What to download.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    /// From where.
    pub url: String,
    /// What it must be.
    pub checksum: Option<Digest>,
    /// The value of `Authorization`, e.g. from the secret `HTTP_AUTH_TOKEN_<host>`.
    pub authorization: Option<Secret>,
}

/// What was downloaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Download {
    /// The content, a blob in the store.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// `Last-Modified`, in seconds since 1970.
    pub last_modified: Option<i64>,
    /// `ETag` without its mark of weakness.
    etag: Option<String>,
}

impl Download {
    /// A file that is a blob of the store already and came from no server.
    #[must_use]
    pub const fn stored(digest: Digest, size: u64) -> Self {
        Self { digest, size, last_modified: None, etag: None }
    }
}

/// Downloads a URL into the store, or finds that it is there already.
///
/// # Errors
/// When the server does not give it, or it is not what the checksum says.
pub fn download(
    client: &RegistryClient,
    store: &Store,
    request: &HttpRequest,
    progress: &dyn FetchProgress,
) -> Result<Download, HttpError> {
    let (uri, authorization) = address(request)?;
    let memo = Memo { store, key: memo_key(&uri, authorization.as_ref()) };
    let known = memo.load()?;
    if let (Some(checksum), Some(known)) = (&request.checksum, &known)
        && known.digest == *checksum
    {
        return Ok(known.clone());
    }
    if let (true, None, Some(known)) = (client.settings().offline, &request.checksum, &known) {
        return Ok(known.clone());
    }
    let transfer = Transfer { client, store, uri, authorization, progress };
    let mut attempt = 1;
    let found = loop {
        let etag = known.as_ref().and_then(|known| known.etag.as_deref());
        match transfer.run(etag, request.checksum.as_ref()) {
            Err(HttpError::Body { source, .. })
                if is_transient_io(&source)
                    && let Some(wait) = client.settings().retries.wait(attempt, None) =>
            {
                std::thread::sleep(wait);
                attempt += 1;
            }
            result => break result?,
        }
    };
    match (found, known) {
        (Some(found), _) => {
            memo.save(&found)?;
            Ok(found)
        }
        (None, Some(known)) => match &request.checksum {
            Some(expected) if *expected != known.digest => Err(HttpError::Checksum {
                url: shown(&transfer.uri),
                actual: known.digest,
                expected: expected.clone(),
            }),
            _ => Ok(known),
        },
        // 304 though nothing was asked to be compared.
        (None, None) => Err(HttpError::Status { url: shown(&transfer.uri), status: 304 }),
    }
}

/// The address without user and password, and what these become.
fn address(request: &HttpRequest) -> Result<(Uri, Option<Secret>), HttpError> {
    let bad = || {
        let url = request.url.split(['?', '#']).next().unwrap_or_default();
        // What stands before an `@` may be a password.
        HttpError::Address { url: url.rsplit('@').next().unwrap_or_default().to_owned() }
    };
    let text = request.url.split('#').next().unwrap_or_default();
    let (scheme, rest) = text.split_once("://").ok_or_else(bad)?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    let uri: Uri = format!("{scheme}://{host}{path}").parse().map_err(|_| bad())?;
    Origin::of(&uri).ok_or_else(bad)?;
    let from_url = user.map(|user| {
        let (name, password) = user.split_once(':').unwrap_or((user, ""));
        Secret::basic(&unescape(name), &unescape(password))
    });
    Ok((uri, request.authorization.clone().or(from_url)))
}

/// Undoes percent-encoding.
fn unescape(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        match hex.filter(|_| bytes[at] == b'%').and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

/// What a download is remembered under. Whoever shows other credentials may get something else.
fn memo_key(uri: &Uri, authorization: Option<&Secret>) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("kiln 2026 http download");
    hasher.update(uri.to_string().as_bytes());
    if let Some(secret) = authorization {
        hasher.update(b"\0").update(secret.expose().as_bytes());
    }
    format!("http:{}", hasher.finalize().to_hex())
}

/// The note of an earlier download.
struct Memo<'a> {
    store: &'a Store,
    key: String,
}

impl Memo<'_> {
    const PLATFORM: &'static str = "download";

    fn load(&self) -> Result<Option<Download>, HttpError> {
        let Some(digest) = self.store.recall_reference(&self.key, Self::PLATFORM)? else {
            return Ok(None);
        };
        let Some(bytes) = self.store.read_blob(&digest, limits::DOCUMENT_BYTES)? else {
            return Ok(None);
        };
        let Ok(known) = serde_json::from_slice::<Download>(&bytes) else { return Ok(None) };
        Ok(self.store.has_blob(&known.digest)?.then_some(known))
    }

    fn save(&self, download: &Download) -> Result<(), HttpError> {
        let digest = self.store.put_blob(&crate::json::compact(download))?;
        Ok(self.store.remember_reference(&self.key, Self::PLATFORM, &digest)?)
    }
}

struct Transfer<'a> {
    client: &'a RegistryClient,
    store: &'a Store,
    uri: Uri,
    authorization: Option<Secret>,
    progress: &'a dyn FetchProgress,
}

impl Transfer<'_> {
    /// Asks once; none when the server says that nothing has changed.
    fn run(
        &self,
        etag: Option<&str>,
        checksum: Option<&Digest>,
    ) -> Result<Option<Download>, HttpError> {
        let (uri, response) = self.follow(etag)?;
        let url = shown(&uri);
        match response.status().as_u16() {
            304 => return Ok(None),
            200 => {}
            status => return Err(HttpError::Status { url, status }),
        }
        let header = |name: HeaderName| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let etag = header(ETAG).map(|tag| tag.trim_start_matches("W/").to_owned());
        let last_modified = header(LAST_MODIFIED).and_then(|text| seconds(&text));
        let encoding = header(CONTENT_ENCODING).unwrap_or_default();
        let (digest, size) = self.save(response, &encoding, checksum, &url)?;
        Ok(Some(Download { digest, size, last_modified, etag }))
    }

    fn follow(&self, etag: Option<&str>) -> Result<(Uri, Response<Body>), HttpError> {
        let home = Origin::of(&self.uri);
        let mut uri = self.uri.clone();
        for _ in 0..=REDIRECTS {
            let mut headers = Vec::new();
            headers.extend(etag.map(|etag| (IF_NONE_MATCH, etag.to_owned())));
            let authorization = self.authorization.as_ref().filter(|_| Origin::of(&uri) == home);
            let call = Call {
                operation: "download",
                method: Method::GET,
                uri: uri.clone(),
                headers,
                payload: Payload::None,
                scope: "",
            };
            let response = self.client.persistent(&call, authorization.map(Secret::expose))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((uri, response));
            }
            let refused = |reason| HttpError::Redirect { url: shown(&uri), reason };
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| refused("a redirect without a location"))?;
            let next =
                join(&uri, location).ok_or_else(|| refused("a redirect to no http address"))?;
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(refused("a redirect from https to http"));
            }
            uri = next;
        }
        Err(HttpError::Redirect { url: shown(&self.uri), reason: "more than 10 redirects" })
    }

    fn save(
        &self,
        response: Response<Body>,
        encoding: &str,
        checksum: Option<&Digest>,
        url: &str,
    ) -> Result<(Digest, u64), HttpError> {
        let failed = |source| HttpError::Body { url: url.to_owned(), source };
        let total = response.body().content_length().unwrap_or(0);
        let body = response.into_body().into_reader();
        let mut reader: Box<dyn Read> = match encoding {
            "gzip" | "x-gzip" => Box::new(MultiGzDecoder::new(body)),
            _ => Box::new(body),
        };
        let mut writer = self.store.blob_writer()?;
        let name = checksum.cloned().unwrap_or_else(|| Digest::sha256(url.as_bytes()));
        let mut buffer = vec![0; 256 << 10];
        loop {
            if self.progress.cancelled() {
                return Err(HttpError::Cancelled);
            }
            let count = reader.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                break;
            }
            writer.write_all(&buffer[..count]).map_err(failed)?;
            if writer.size() > Budget::default().bytes {
                let reason = format!("it has more than {} bytes", Budget::default().bytes);
                return Err(failed(io::Error::other(reason)));
            }
            self.progress.advance(&name, writer.size(), total);
        }
        match writer.commit(checksum) {
            Ok(info) => Ok((info.digest, info.size)),
            Err(StoreError::DigestMismatch { expected, actual, .. }) => {
                Err(HttpError::Checksum { url: url.to_owned(), actual, expected })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// A date of HTTP in seconds since 1970.
fn seconds(text: &str) -> Option<i64> {
    let time = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(time.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_give_up_their_passwords() {
        let check = |url: &str| {
            address(&HttpRequest { url: url.to_owned(), checksum: None, authorization: None })
        };
        let (uri, secret) = check("https://u:p%40x@h:1/a?b#c").unwrap();
        assert_eq!(uri.to_string(), "https://h:1/a?b");
        assert_eq!(secret.unwrap().expose(), "Basic dTpwQHg=");
        assert_eq!(check("http://h").unwrap().0.to_string(), "http://h/");
        for url in ["ftp://h/x", "h/x", "http:///x", "https://u:hunter2@h h/", ""] {
            let error = check(url).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn dates_are_read() {
        assert_eq!(seconds("Thu, 01 Jan 1970 00:00:10 GMT"), Some(10));
        assert_eq!(seconds("Wed, 21 Oct 2015 07:28:00 GMT"), Some(1_445_412_480));
        assert_eq!(seconds("yesterday"), None);
    }
}
