//! What comes from other machines besides images: files by URL and git repositories, with the secrets
//! that open them. Asked for once a build.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_cache::{ContentDigest, LayerDraft, Store, Tree};
use kiln_executor::cancel::Cancel;
use kiln_image::credential::Secret;
use kiln_image::git::{Git, GitCommit, GitError, GitRequest};
use kiln_image::http::{self, Download, HttpRequest};
use kiln_parser::git::GitRef;
use kiln_parser::graph::HttpOp;
use kiln_solver::ports::{Kind, StepError};

use super::images::{Fetch, Images};
use crate::build::secrets::Secrets;
use crate::failure::chain;

/// The address that stands for standard input; its file is in the store already.
pub(crate) const STDIN: &str = "-";

/// The other machines of a build.
pub(crate) struct Remotes {
    store: Store,
    images: Arc<Images>,
    secrets: Arc<Secrets>,
    /// The caller's SSH agent, where git may use it.
    agent: Option<PathBuf>,
    cancel: Cancel,
    offline: bool,
    downloads: Mutex<HashMap<HttpOp, Download>>,
    commits: Mutex<HashMap<GitRef, GitCommit>>,
}

impl Remotes {
    /// Nothing is connected yet.
    pub(crate) fn new(
        store: &Store,
        images: &Arc<Images>,
        secrets: &Arc<Secrets>,
        agent: Option<PathBuf>,
        cancel: &Cancel,
        offline: bool,
    ) -> Self {
        Self {
            store: store.clone(),
            images: Arc::clone(images),
            secrets: Arc::clone(secrets),
            agent,
            cancel: cancel.clone(),
            offline,
            downloads: Mutex::default(),
            commits: Mutex::default(),
        }
    }

    /// Downloads a file into the store, or finds that it is there already.
    ///
    /// # Errors
    /// The server does not give it, or it is not what the checksum says.
    pub(crate) fn download(&self, op: &HttpOp) -> Result<Download, StepError> {
        let mut downloads = self.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = downloads.get(op) {
            return Ok(known.clone());
        }
        let checksum = op.checksum.as_ref().and_then(|text| text.parse().ok());
        let found = match checksum {
            Some(digest) if op.url == STDIN => {
                let size = self.store.blob_size(&digest).map_err(StepError::environment)?;
                Download::stored(digest, size.unwrap_or_default())
            }
            checksum => {
                let authorization = self.authorization("HTTP_AUTH", '_', &op.url, |token| {
                    Secret::new(format!("Bearer {token}"))
                })?;
                let request = HttpRequest { url: op.url.clone(), checksum, authorization };
                let client = self.images.client();
                let found = http::download(client, &self.store, &request, &Fetch(&self.cancel));
                found.map_err(|error| StepError::new(Kind::Input, chain(&error)))?
            }
        };
        downloads.insert(op.clone(), found.clone());
        Ok(found)
    }

    /// The secret `PREFIX_HEADER` or `PREFIX_TOKEN` for an address's host, as `Authorization`.
    fn authorization(
        &self,
        prefix: &str,
        separator: char,
        url: &str,
        token: impl Fn(&str) -> Secret,
    ) -> Result<Option<Secret>, StepError> {
        let host = url.split_once("://").map_or("", |(_, rest)| rest);
        let host = host.split(['/', '?', '#']).next().unwrap_or_default();
        let host = host.rsplit('@').next().unwrap_or_default();
        let text = |id: &str| -> Result<Option<String>, StepError> {
            let bytes =
                self.secrets.get(id).map_err(|why| StepError::new(Kind::Environment, why))?;
            Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
        };
        if let Some(header) = text(&format!("{prefix}_HEADER{separator}{host}"))? {
            return Ok(Some(Secret::new(header)));
        }
        let found = text(&format!("{prefix}_TOKEN{separator}{host}"))?;
        Ok(found.map(|found| token(&found)))
    }

    fn git_authorization(&self, remote: &str) -> Result<Option<Secret>, StepError> {
        let basic = |token: &str| Secret::basic(b"x-access-token", token.as_bytes());
        if let Some(own) = self.authorization("GIT_AUTH", '.', remote, basic)? {
            return Ok(Some(own));
        }
        for (id, is_token) in [("GIT_AUTH_HEADER", false), ("GIT_AUTH_TOKEN", true)] {
            let bytes =
                self.secrets.get(id).map_err(|why| StepError::new(Kind::Environment, why))?;
            if let Some(bytes) = bytes {
                let text = String::from_utf8_lossy(&bytes).trim().to_owned();
                return Ok(Some(if is_token { basic(&text) } else { Secret::new(text) }));
            }
        }
        Ok(None)
    }

    fn request(&self, git: &GitRef) -> Result<GitRequest, StepError> {
        let remote = &git.remote;
        let by_http = remote.starts_with("http://") || remote.starts_with("https://");
        Ok(GitRequest {
            remote: remote.clone(),
            shown: git.to_string(),
            reference: git.reference.clone(),
            checksum: git.checksum.clone(),
            commit: git.commit().map(str::to_owned),
            subdir: git.subdir.clone(),
            keep_git_dir: git.keep_git_dir,
            skip_submodules: git.skip_submodules,
            commit_times: git.commit_times,
            authorization: if by_http { self.git_authorization(remote)? } else { None },
            agent: self.agent.clone(),
        })
    }

    /// What a git reference is now.
    fn commit(&self, git: &GitRef) -> Result<GitCommit, StepError> {
        let mut commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = commits.get(git) {
            return Ok(known.clone());
        }
        let draft = self.store.draft().map_err(StepError::environment)?;
        let request = self.request(git)?;
        let folder = git_folder(&draft)?;
        let known = KnownCommit::of(&self.store, git);
        let found = if self.offline && git.commit().is_none() {
            known.recall().ok_or_else(|| offline(git))?
        } else {
            let found = Git::new(&request, &folder, &Fetch(&self.cancel)).resolve();
            let found = found.map_err(|error| failed(&error))?;
            known.remember(&found);
            found
        };
        commits.insert(git.clone(), found.clone());
        Ok(found)
    }

    /// Identity of a git source.
    pub(crate) fn digest_git(&self, git: &GitRef) -> Result<ContentDigest, StepError> {
        Ok(blake3::hash(self.commit(git)?.id.as_bytes()).into())
    }

    /// Checks a git source out into a new layer.
    pub(crate) fn checkout(&self, git: &GitRef, draft: &LayerDraft) -> Result<Tree, StepError> {
        let commit = self.commit(git)?;
        if self.offline {
            return Err(offline(git));
        }
        let request = self.request(git)?;
        let folder = git_folder(draft)?;
        let out =
            Git::new(&request, &folder, &Fetch(&self.cancel)).checkout(&commit, draft.fs_path());
        out.map_err(|error| failed(&error))?;
        draft.scan().map_err(StepError::environment)
    }
}

fn offline(git: &GitRef) -> StepError {
    StepError {
        kind: Kind::Environment,
        message: format!("`{git}` is not in the store, and nothing is fetched offline"),
        help: Some(super::registry::OFFLINE_HELP.to_owned()),
    }
}

/// What a git reference was the last time that it was asked for: for builds without a network.
struct KnownCommit<'a> {
    store: &'a Store,
    key: String,
}

impl<'a> KnownCommit<'a> {
    const PLATFORM: &'static str = "git";
    const BYTES_MAX: u64 = 64 << 10;

    fn of(store: &'a Store, git: &GitRef) -> Self {
        let text = format!("{}\0{}\0{}", git.remote, git.reference, git.keep_git_dir);
        let hash = blake3::derive_key("kiln 2026 git reference", text.as_bytes());
        Self { store, key: format!("git:{}", blake3::Hash::from(hash).to_hex()) }
    }

    fn recall(&self) -> Option<GitCommit> {
        let digest = self.store.recall_reference(&self.key, Self::PLATFORM).ok()??;
        let bytes = self.store.read_blob(&digest, Self::BYTES_MAX).ok()??;
        serde_json::from_slice(&bytes).ok()
    }

    /// What is not remembered has to be asked for again, no more.
    fn remember(&self, commit: &GitCommit) {
        if self.recall().as_ref() == Some(commit) {
            return;
        }
        let text = serde_json::to_vec(commit).unwrap_or_default();
        if let Ok(digest) = self.store.put_blob(&text) {
            let _unknown = self.store.remember_reference(&self.key, Self::PLATFORM, &digest);
        }
    }
}

/// A folder beside a draft, which is removed with it.
fn git_folder(draft: &LayerDraft) -> Result<PathBuf, StepError> {
    let folder = draft.beside("git");
    std::fs::create_dir_all(&folder).map_err(StepError::environment)?;
    Ok(folder)
}

fn failed(error: &GitError) -> StepError {
    let (kind, help) = match error {
        GitError::Cancelled => (Kind::Cancelled, None),
        GitError::NoGit { .. } => (Kind::Environment, Some("install the package `git`")),
        GitError::Io { .. } => (Kind::Environment, None),
        GitError::Failed { .. } => (
            Kind::Input,
            Some(
                "private repositories need --secret id=GIT_AUTH_TOKEN,env=… (https) or --ssh default (ssh)",
            ),
        ),
        GitError::NoReference { .. } => {
            (Kind::Input, Some("the part behind `#` is a branch, a tag or a whole commit"))
        }
        GitError::Checksum { .. } | GitError::NoFolder { .. } => (Kind::Input, None),
    };
    StepError { kind, message: chain(error), help: help.map(str::to_owned) }
}
