//! Push: blobs in parallel, then manifests, then the index, last under its tags.
//!
//! A blob that the registry has is not sent; one that another repository there has is mounted. A
//! manifest goes up only after everything that it names, so nobody ever sees half an image.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::{Mutex, PoisonError};

use kiln_cache::{Descriptor, Digest, Store};
use ureq::Body;
use ureq::http::header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION};
use ureq::http::{HeaderName, Method, Response, Uri};

use super::RegistryError;
use super::client::{Call, RegistryClient, address, shown};
use super::hosts::{Endpoint, Origin, join};
use super::retry::is_transient_status;
use super::token::escape;
use super::transport::Payload;
use crate::export::{ExportError, reachable};
use crate::reference::Reference;
use crate::{limits, media_type};

/// Blobs that are sent at once, as BuildKit does.
const PARALLEL: usize = 4;

/// What to push, and where to.
#[derive(Clone, Debug)]
pub struct PushRequest {
    /// The manifest or index, in the store with all that it names.
    pub root: Descriptor,
    /// Under which names.
    pub targets: Vec<Reference>,
    /// Without a tag: the name in each target only says the repository.
    pub by_digest: bool,
    /// From which repositories blobs came: they are mounted from there within one registry.
    pub sources: HashMap<Digest, Reference>,
}

/// Brings a blob into the store that a registry has not; says whether it could.
pub type Bring<'a> = dyn Fn(&Descriptor) -> bool + Sync + 'a;

/// Pushes an image under all its names. What the store has not is asked of `bring`, where the registry has it not.
///
/// # Errors
/// When something is missing from the store, or a registry does not take it.
pub fn push(
    client: &RegistryClient,
    store: &Store,
    request: &PushRequest,
    bring: &Bring<'_>,
) -> Result<(), RegistryError> {
    let parts = reachable(store, &request.root).map_err(|error| match error {
        ExportError::MissingBlob(digest) => RegistryError::MissingBlob(digest),
        ExportError::Store(error) => RegistryError::Store(error),
        other => RegistryError::Conflict(other.to_string()),
    })?;
    let (documents, blobs): (Vec<_>, Vec<_>) = parts.into_iter().partition(|d| {
        media_type::is_index(&d.media_type) || media_type::is_manifest(&d.media_type)
    });
    for (n, target) in request.targets.iter().enumerate() {
        if let Some(digest) = target.digest() {
            let text = format!("cannot push to the digest `{digest}`: give a tag or a name only");
            return Err(RegistryError::Conflict(text));
        }
        let upload = Upload::new(client, store, target, request, bring);
        let known = request.targets[..n].iter().any(|earlier| earlier.name() == target.name());
        if !known {
            upload.blobs(&blobs)?;
            // Documents before what they name: from the end, everything is there when it is named.
            for document in documents.iter().rev().filter(|d| d.digest != request.root.digest) {
                upload.manifest_of(&blobs, document, document.digest.as_str())?;
            }
        }
        let name = match target.tag() {
            Some(tag) if !request.by_digest => tag,
            _ => request.root.digest.as_str(),
        };
        upload.manifest_of(&blobs, &request.root, name)?;
    }
    Ok(())
}

/// Whether a repository has a blob.
///
/// # Errors
/// The registry does not say.
pub fn has_blob(
    client: &RegistryClient,
    target: &Reference,
    digest: &Digest,
) -> Result<bool, RegistryError> {
    Repository::new(client, target).has(digest)
}

/// Sends one blob of the store, unless it is there.
///
/// # Errors
/// It is not in the store, or the registry does not take it.
pub fn push_blob(
    client: &RegistryClient,
    store: &Store,
    target: &Reference,
    blob: &Descriptor,
) -> Result<(), RegistryError> {
    let (sources, repository) = (HashMap::new(), Repository::new(client, target));
    Upload { store, sources: &sources, bring: &|_| false, repository }.blob(blob)
}

/// Sends a blob that is in memory, unless it is there.
///
/// # Errors
/// The registry does not take it.
pub fn push_small_blob(
    client: &RegistryClient,
    target: &Reference,
    digest: &Digest,
    bytes: &[u8],
) -> Result<(), RegistryError> {
    let repository = Repository::new(client, target);
    if repository.has(digest)? {
        return Ok(());
    }
    match repository.start(digest, None)? {
        Some(location) => repository.finish(location, digest, Payload::Bytes(bytes)),
        None => Ok(()),
    }
}

/// Sends a document, whose parts are there, under a tag or its digest.
///
/// # Errors
/// The registry does not take it.
pub fn push_document(
    client: &RegistryClient,
    target: &Reference,
    media_type: &str,
    bytes: &[u8],
    name: &str,
) -> Result<(), RegistryError> {
    Repository::new(client, target).document(media_type, bytes, name)
}

/// One repository while it is pushed to.
struct Repository<'a> {
    client: &'a RegistryClient,
    target: &'a Reference,
    endpoint: Endpoint,
    scope: String,
}

/// What is pushed there.
struct Upload<'a> {
    store: &'a Store,
    sources: &'a HashMap<Digest, Reference>,
    bring: &'a Bring<'a>,
    repository: Repository<'a>,
}

impl<'a> Upload<'a> {
    fn new(
        client: &'a RegistryClient,
        store: &'a Store,
        target: &'a Reference,
        request: &'a PushRequest,
        bring: &'a Bring<'a>,
    ) -> Self {
        let repository = Repository::new(client, target);
        Self { store, sources: &request.sources, bring, repository }
    }

    /// Sends all blobs, a few at once; the first failure ends it.
    fn blobs(&self, blobs: &[Descriptor]) -> Result<(), RegistryError> {
        self.each(blobs, |blob| self.blob(blob))
    }

    fn each(
        &self,
        blobs: &[Descriptor],
        send: impl Fn(&Descriptor) -> Result<(), RegistryError> + Sync,
    ) -> Result<(), RegistryError> {
        // Layers that may not be distributed say where they are and stay there.
        let wanted = blobs.iter().filter(|blob| !blob.extra.contains_key("urls"));
        let queue: Mutex<VecDeque<&Descriptor>> = Mutex::new(wanted.collect());
        let failure: Mutex<Option<RegistryError>> = Mutex::new(None);
        let next = || {
            let failed = failure.lock().unwrap_or_else(PoisonError::into_inner).is_some();
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            if failed { None } else { queue.pop_front() }
        };
        let work = || {
            while let Some(blob) = next() {
                if let Err(error) = send(blob) {
                    let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                    failure.get_or_insert(error);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..PARALLEL.min(blobs.len()) {
                scope.spawn(work);
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Sends a blob that is not there.
    fn blob(&self, blob: &Descriptor) -> Result<(), RegistryError> {
        if self.repository.has(&blob.digest)? { Ok(()) } else { self.send(blob) }
    }

    fn send(&self, blob: &Descriptor) -> Result<(), RegistryError> {
        let (digest, repository) = (&blob.digest, &self.repository);
        let target = repository.target;
        let from = self.sources.get(digest).filter(|source| {
            source.registry() == target.registry() && source.repository() != target.repository()
        });
        let mut attempt = 1;
        loop {
            let Some(location) = repository.start(digest, from)? else { return Ok(()) };
            let file = match self.store.open_blob(digest)? {
                None if (self.bring)(blob) => self.store.open_blob(digest)?,
                file => file,
            };
            let file = file.ok_or_else(|| RegistryError::MissingBlob(digest.clone()))?;
            let Err(error) = repository.content(blob, &file, location) else { return Ok(()) };
            // A registry refuses what is not what its digest says; then it is ours that is damaged.
            if !self.store.check_blob(digest)? {
                return Err(RegistryError::MissingBlob(digest.clone()));
            }
            // How much of a broken upload the registry has nobody knows: it begins anew.
            let wait = repository.client.settings().retries.wait(attempt, None);
            let Some(wait) = wait.filter(|_| is_broken_upload(&error)) else { return Err(error) };
            std::thread::sleep(wait);
            attempt += 1;
        }
    }

    /// Sends a document. Registries exist that say they have a blob and then do not know it (a cache in front of them,
    /// a storage that lost it): they get all of `blobs`, once.
    fn manifest_of(
        &self,
        blobs: &[Descriptor],
        document: &Descriptor,
        name: &str,
    ) -> Result<(), RegistryError> {
        match self.manifest(document, name) {
            Err(error) if says_missing(&error) => {
                self.each(blobs, |blob| self.send(blob))?;
                self.manifest(document, name)
            }
            result => result,
        }
    }

    fn manifest(&self, document: &Descriptor, name: &str) -> Result<(), RegistryError> {
        let missing = || RegistryError::MissingBlob(document.digest.clone());
        let bytes =
            self.store.read_blob(&document.digest, limits::DOCUMENT_BYTES)?.ok_or_else(missing)?;
        self.repository.document(&document.media_type, &bytes, name)
    }
}

/// Whether an upload ended so that a new one may not.
fn is_broken_upload(error: &RegistryError) -> bool {
    match error {
        RegistryError::Connection { .. } | RegistryError::NotFound { .. } => true,
        // 416: the registry has another part of the upload than we think.
        RegistryError::Status { status, .. } => *status == 416 || is_transient_status(*status),
        _ => false,
    }
}

/// Whether a document was refused because of what it names.
fn says_missing(error: &RegistryError) -> bool {
    match error {
        RegistryError::NotFound { .. } => true,
        RegistryError::Status { status: 400, message, .. } => {
            message.to_ascii_lowercase().replace('_', " ").contains("blob unknown")
        }
        _ => false,
    }
}

impl<'a> Repository<'a> {
    fn new(client: &'a RegistryClient, target: &'a Reference) -> Self {
        let endpoint = client.settings().hosts.endpoint(target.registry());
        let scope = format!("repository:{}:pull,push", target.repository());
        Self { client, target, endpoint, scope }
    }

    fn call<'b>(&'b self, method: Method, uri: Uri, payload: Payload<'b>) -> Call<'b> {
        let (headers, scope) = (Vec::new(), self.scope.as_str());
        Call { operation: "push to", method, uri, headers, payload, scope }
    }

    fn send(&self, call: Call<'_>, statuses: &[u16]) -> Result<Response<Body>, RegistryError> {
        self.client.expect(&self.endpoint, call, &self.target.name(), statuses)
    }

    fn has(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let path = format!("/v2/{}/blobs/{digest}", self.target.repository());
        let head = self.call(Method::HEAD, address(&self.endpoint, &path)?, Payload::None);
        Ok(self.send(head, &[200, 404])?.status().as_u16() == 200)
    }

    fn content(&self, blob: &Descriptor, file: &File, location: Uri) -> Result<(), RegistryError> {
        match self.client.settings().chunk {
            Some(chunk) if chunk > 0 && blob.size > chunk => {
                self.chunks(blob, file, location, chunk)
            }
            _ => {
                let payload = Payload::File { file, offset: 0, length: blob.size };
                self.finish(location, &blob.digest, payload)
            }
        }
    }

    /// Starts an upload and gives its location; none if the blob was mounted instead.
    fn start(
        &self,
        digest: &Digest,
        from: Option<&Reference>,
    ) -> Result<Option<Uri>, RegistryError> {
        let uploads = format!("/v2/{}/blobs/uploads/", self.target.repository());
        let response = match from {
            None => {
                let uri = address(&self.endpoint, &uploads)?;
                self.send(self.call(Method::POST, uri, Payload::Bytes(&[])), &[202])?
            }
            Some(source) => {
                let repository = source.repository();
                let query = format!("{uploads}?mount={digest}&from={}", escape(repository));
                let scope = format!("{} repository:{repository}:pull", self.scope);
                let uri = address(&self.endpoint, &query)?;
                let call = self.call(Method::POST, uri, Payload::Bytes(&[]));
                match self.send(Call { scope: &scope, ..call }, &[201, 202]) {
                    // A registry that refuses the mount (or the right to pull from there) may still
                    // take the blob.
                    Err(
                        RegistryError::Status { .. }
                        | RegistryError::Unauthorized { .. }
                        | RegistryError::NotFound { .. },
                    ) => {
                        let uri = address(&self.endpoint, &uploads)?;
                        self.send(self.call(Method::POST, uri, Payload::Bytes(&[])), &[202])?
                    }
                    other => other?,
                }
            }
        };
        if response.status().as_u16() == 201 {
            return Ok(None);
        }
        self.location(&address(&self.endpoint, &uploads)?, &response).map(Some)
    }

    /// Where the upload goes on. The bytes are not secret to another host, but https stays https.
    fn location(&self, from: &Uri, response: &Response<Body>) -> Result<Uri, RegistryError> {
        let wrong =
            |reason: &str| RegistryError::Answer { url: shown(from), reason: reason.to_owned() };
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| wrong("an upload without a location"))?;
        let next = join(from, location).ok_or_else(|| wrong("an upload to no http address"))?;
        let secure = |uri: &Uri| Origin::of(uri).is_some_and(|origin| origin.is_secure());
        if secure(from) && !secure(&next) {
            return Err(wrong("an upload from https to http"));
        }
        Ok(next)
    }

    fn finish(
        &self,
        location: Uri,
        digest: &Digest,
        payload: Payload<'_>,
    ) -> Result<(), RegistryError> {
        let text = location.to_string();
        let joint = if text.contains('?') { '&' } else { '?' };
        let uri = format!("{text}{joint}digest={digest}").parse().map_err(|_| {
            let reason = "its upload location is no address".to_owned();
            RegistryError::Answer { url: shown(&location), reason }
        })?;
        let mut call = self.call(Method::PUT, uri, payload);
        call.headers = vec![(CONTENT_TYPE, "application/octet-stream".to_owned())];
        self.send(call, &[201, 204]).map(drop)
    }

    fn chunks(
        &self,
        blob: &Descriptor,
        file: &File,
        mut location: Uri,
        chunk: u64,
    ) -> Result<(), RegistryError> {
        let mut offset = 0;
        while offset < blob.size {
            let length = chunk.min(blob.size - offset);
            let payload = Payload::File { file, offset, length };
            let mut call = self.call(Method::PATCH, location.clone(), payload);
            let range: (HeaderName, String) =
                (CONTENT_RANGE, format!("{offset}-{}", offset + length - 1));
            call.headers = vec![(CONTENT_TYPE, "application/octet-stream".to_owned()), range];
            let response = self.send(call, &[202, 204])?;
            location = self.location(&location, &response)?;
            offset += length;
        }
        self.finish(location, &blob.digest, Payload::Bytes(&[]))
    }

    fn document(&self, media_type: &str, bytes: &[u8], name: &str) -> Result<(), RegistryError> {
        let path = format!("/v2/{}/manifests/{name}", self.target.repository());
        let uri = address(&self.endpoint, &path)?;
        let mut call = self.call(Method::PUT, uri, Payload::Bytes(bytes));
        call.headers = vec![(CONTENT_TYPE, media_type.to_owned())];
        self.send(call, &[200, 201, 202]).map(drop)
    }
}
