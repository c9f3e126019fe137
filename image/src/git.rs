//! Git repositories through the `git` program: what a reference is now, and a checkout of it.
//!
//! What a repository says is hostile: git runs without the configuration of the machine and the user,
//! without hooks, prompts and file system monitors, and speaks only https, http, ssh and its own
//! protocol (`file` where the caller named such an address; submodules never do). Passwords reach it
//! in its environment, not in its arguments.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use crate::credential::Secret;
use crate::source::FetchProgress;

/// How often it is asked whether git has ended.
const POLL: Duration = Duration::from_millis(5);
/// What of git's output is kept.
const OUTPUT_BYTES_MAX: u64 = 16 << 20;
/// How many lines of git's complaint an error repeats.
const COMPLAINT_LINES: usize = 6;

/// Why there is no checkout.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The program is not installed.
    #[error("git is not installed: it fetches `{remote}`")]
    NoGit {
        /// What was to be fetched.
        remote: String,
    },
    /// git says no.
    #[error("cannot fetch `{remote}`: {complaint}")]
    Failed {
        /// The repository.
        remote: String,
        /// git's last lines.
        complaint: String,
    },
    /// The repository has no such reference.
    #[error("repository `{remote}` does not contain ref {reference}")]
    NoReference {
        /// The repository.
        remote: String,
        /// What was looked for.
        reference: String,
    },
    /// The reference is another commit than the one asked for.
    #[error("expected checksum to match {expected}, got {actual}")]
    Checksum {
        /// What was asked for.
        expected: String,
        /// What it is.
        actual: String,
    },
    /// The folder of the repository is not there, or is no folder.
    #[error("repository `{remote}` has no folder `{subdir}`")]
    NoFolder {
        /// The repository.
        remote: String,
        /// The folder.
        subdir: String,
    },
    /// Files of this machine.
    #[error("cannot check `{remote}` out: {source}")]
    Io {
        /// The repository.
        remote: String,
        /// Why.
        source: io::Error,
    },
    /// Somebody ended it.
    #[error("cancelled")]
    Cancelled,
}

/// What to fetch, and with which rights.
#[derive(Clone, Debug)]
pub struct GitRequest {
    /// The address as git is given it.
    pub remote: String,
    /// The address as people are shown it: without a password.
    pub shown: String,
    /// Branch, tag, full reference or commit; empty for the default branch.
    pub reference: String,
    /// The beginning of the commit that it has to be; empty for any.
    pub checksum: String,
    /// The commit, where it is known without asking.
    pub commit: Option<String>,
    /// Folder that is taken, `a/b`; empty for all of the repository.
    pub subdir: String,
    /// Whether `.git` stays.
    pub keep_git_dir: bool,
    /// Submodules are left out.
    pub skip_submodules: bool,
    /// Files get the time of the commit.
    pub commit_times: bool,
    /// The value of `Authorization` for the repository's address.
    pub authorization: Option<Secret>,
    /// An SSH agent's socket.
    pub agent: Option<PathBuf>,
}

/// What a reference is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitCommit {
    /// The object's name: of the commit, or of the annotated tag where `.git` is kept.
    pub id: String,
    /// The full reference that names it on the other side; `None` for a bare commit.
    pub reference: Option<String>,
}

/// git, in a private folder for its temporary files.
pub struct Git<'a> {
    request: &'a GitRequest,
    folder: &'a Path,
    progress: &'a dyn FetchProgress,
}

impl std::fmt::Debug for Git<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Git").field("remote", &self.request.shown).finish_non_exhaustive()
    }
}

impl<'a> Git<'a> {
    /// `folder` is empty and the caller's to remove.
    #[must_use]
    pub fn new(request: &'a GitRequest, folder: &'a Path, progress: &'a dyn FetchProgress) -> Self {
        Self { request, folder, progress }
    }

    /// What the reference is now; nothing is fetched.
    ///
    /// # Errors
    /// No connection, no such reference, another commit than asked for.
    pub fn resolve(&self) -> Result<GitCommit, GitError> {
        if let Some(commit) = &self.request.commit {
            self.check(commit, None)?;
            return Ok(GitCommit { id: commit.clone(), reference: None });
        }
        let reference = match self.request.reference.as_str() {
            "" => self.default_branch()?,
            named => named.to_owned(),
        };
        let peeled = format!("{reference}^{{}}");
        let list =
            self.git(None, &["ls-remote", "--", &self.request.remote, &reference, &peeled])?;
        let found = pick(&list, &reference);
        let (id, name, tagged) = found.ok_or_else(|| GitError::NoReference {
            remote: self.request.shown.clone(),
            reference: reference.clone(),
        })?;
        self.check(&id, tagged.as_deref())?;
        let id = match tagged {
            Some(commit) if !self.request.keep_git_dir => commit,
            _ => id,
        };
        Ok(GitCommit { id, reference: Some(name) })
    }

    fn check(&self, id: &str, tagged: Option<&str>) -> Result<(), GitError> {
        let expected = self.request.checksum.as_str();
        if id.starts_with(expected) || tagged.is_some_and(|commit| commit.starts_with(expected)) {
            return Ok(());
        }
        let actual = tagged.map_or_else(|| id.to_owned(), |commit| format!("{id} or {commit}"));
        Err(GitError::Checksum { expected: expected.to_owned(), actual })
    }

    fn default_branch(&self) -> Result<String, GitError> {
        let list =
            self.git(None, &["ls-remote", "--symref", "--", &self.request.remote, "HEAD"])?;
        let branch = list.lines().find_map(|line| {
            line.strip_prefix("ref: ")?.split_whitespace().next().map(str::to_owned)
        });
        branch.filter(|branch| !branch.starts_with('-')).ok_or_else(|| GitError::NoReference {
            remote: self.request.shown.clone(),
            reference: "HEAD".to_owned(),
        })
    }

    /// Puts the files of a commit into `dest`, an empty folder of the same file system as the
    /// folder for temporary files.
    ///
    /// # Errors
    /// It cannot be fetched; the repository has not the folder that was asked for.
    pub fn checkout(&self, commit: &GitCommit, dest: &Path) -> Result<(), GitError> {
        let tree = self.folder.join("tree");
        fs::create_dir(&tree).map_err(|e| self.io(e))?;
        self.git(
            Some(&tree),
            &["-c", "init.defaultBranch=master", "init", "--quiet", self.format(commit)],
        )?;
        self.git(Some(&tree), &["remote", "add", "origin", "--", &self.request.remote])?;
        self.fetch(&tree, commit)?;
        self.git(Some(&tree), &["checkout", "--quiet", "--detach", "FETCH_HEAD"])?;
        if !self.request.skip_submodules && tree.join(".gitmodules").exists() {
            let update = ["submodule", "update", "--quiet", "--init", "--recursive", "--depth=1"];
            self.git(Some(&tree), &update)?;
        }
        let time = self.request.commit_times.then(|| self.commit_time(&tree)).transpose()?;
        let keep = self.request.keep_git_dir && self.request.subdir.is_empty();
        if keep {
            self.tidy(&tree)?;
        }
        let taken = self.subdir(&tree)?;
        settle(&taken, keep, time).map_err(|e| self.io(e))?;
        for entry in fs::read_dir(&taken).map_err(|e| self.io(e))? {
            let entry = entry.map_err(|e| self.io(e))?;
            fs::rename(entry.path(), dest.join(entry.file_name())).map_err(|e| self.io(e))?;
        }
        Ok(())
    }

    /// Repositories with SHA-256 names have to be made as such.
    fn format(&self, commit: &GitCommit) -> &'static str {
        if commit.id.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" }
    }

    /// One commit without its history; servers that give only references are asked for these.
    fn fetch(&self, tree: &Path, commit: &GitCommit) -> Result<(), GitError> {
        let quiet = ["fetch", "--quiet", "--no-tags", "--depth=1", "origin"];
        let wanted = commit.reference.as_deref().unwrap_or(&commit.id);
        let first = self.git(Some(tree), &[&quiet[..], &[wanted]].concat());
        if first.is_ok() && self.is_fetched(tree, commit)? {
            return Ok(());
        }
        // The reference moved meanwhile, or the server does not hand out bare commits.
        let second = self.git(Some(tree), &[&quiet[..], &[&commit.id]].concat());
        if second.is_ok() && self.is_fetched(tree, commit)? {
            return Ok(());
        }
        let all = "+refs/heads/*:refs/remotes/origin/*";
        self.git(Some(tree), &["fetch", "--quiet", "--tags", "origin", all])?;
        let head = format!("{}^{{commit}}", commit.id);
        let known = self.git(Some(tree), &["cat-file", "-e", &head]);
        known.map_err(|_| match second {
            Err(error) => error,
            Ok(_) => GitError::NoReference {
                remote: self.request.shown.clone(),
                reference: commit.id.clone(),
            },
        })?;
        fs::write(tree.join(".git/FETCH_HEAD"), format!("{}\n", commit.id)).map_err(|e| self.io(e))
    }

    /// Whether what came is the commit, or the tag that names it.
    fn is_fetched(&self, tree: &Path, commit: &GitCommit) -> Result<bool, GitError> {
        for name in ["FETCH_HEAD", "FETCH_HEAD^{commit}"] {
            if self.git(Some(tree), &["rev-parse", name])?.trim() == commit.id {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn commit_time(&self, tree: &Path) -> Result<SystemTime, GitError> {
        let text = self.git(Some(tree), &["show", "--no-patch", "--format=%ct", "HEAD"])?;
        Ok(UNIX_EPOCH + Duration::from_secs(text.trim().parse().unwrap_or(0)))
    }

    /// What a kept `.git` should not tell: passwords, and when it was fetched.
    fn tidy(&self, tree: &Path) -> Result<(), GitError> {
        let bare = self.request.shown.split('#').next().unwrap_or_default();
        self.git(Some(tree), &["remote", "set-url", "origin", "--", bare])?;
        self.git(Some(tree), &["reflog", "expire", "--all", "--expire=now"])?;
        match fs::remove_file(tree.join(".git/FETCH_HEAD")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.io(error)),
            _ => Ok(()),
        }
    }

    /// The folder that is taken; no part of its path may be a symbolic link.
    fn subdir(&self, tree: &Path) -> Result<PathBuf, GitError> {
        let mut path = tree.to_owned();
        for part in self.request.subdir.split('/').filter(|part| !part.is_empty()) {
            path.push(part);
            if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
                return Err(GitError::NoFolder {
                    remote: self.request.shown.clone(),
                    subdir: self.request.subdir.clone(),
                });
            }
        }
        Ok(path)
    }

    fn io(&self, source: io::Error) -> GitError {
        GitError::Io { remote: self.request.shown.clone(), source }
    }

    /// Runs git and gives what it printed.
    fn git(&self, folder: Option<&Path>, args: &[&str]) -> Result<String, GitError> {
        let (mut out, mut err) = (self.scratch()?, self.scratch()?);
        let mut command = Command::new("git");
        command.args(["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"]);
        command.args([
            "-c",
            "protocol.allow=never",
            "-c",
            "gc.auto=0",
            "-c",
            "advice.detachedHead=false",
        ]);
        for protocol in ["https", "http", "ssh", "git"] {
            command.arg("-c").arg(format!("protocol.{protocol}.allow=always"));
        }
        if self.request.remote.starts_with("file://") {
            command.args(["-c", "protocol.file.allow=user"]);
        }
        command.args(args).current_dir(folder.unwrap_or(self.folder));
        self.environment(&mut command);
        command.stdin(Stdio::null());
        command.stdout(out.try_clone().map_err(|e| self.io(e))?);
        command.stderr(err.try_clone().map_err(|e| self.io(e))?);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => GitError::NoGit { remote: self.request.shown.clone() },
            _ => self.io(error),
        })?;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|e| self.io(e))? {
                break status;
            }
            if self.progress.cancelled() {
                child.kill().and_then(|()| child.wait()).map_err(|e| self.io(e))?;
                return Err(GitError::Cancelled);
            }
            std::thread::sleep(POLL);
        };
        if status.success() {
            return read_back(&mut out).map_err(|e| self.io(e));
        }
        let text = read_back(&mut err).map_err(|e| self.io(e))?;
        Err(GitError::Failed { remote: self.request.shown.clone(), complaint: complaint(&text) })
    }

    fn scratch(&self) -> Result<File, GitError> {
        tempfile::tempfile_in(self.folder).map_err(|e| self.io(e))
    }

    /// Nothing of the caller's environment but the way to programs, proxies and authorities.
    fn environment(&self, command: &mut Command) {
        const KEPT: &[&str] = &[
            "PATH",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "NO_PROXY",
            "ALL_PROXY",
            "http_proxy",
            "https_proxy",
            "no_proxy",
            "all_proxy",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
            "GIT_SSL_CAINFO",
        ];
        command.env_clear();
        command.envs(
            std::env::vars_os()
                .filter(|(name, _)| name.to_str().is_some_and(|name| KEPT.contains(&name))),
        );
        command.env("HOME", self.folder).env("LC_ALL", "C").env("GIT_TERMINAL_PROMPT", "0");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
        command.env("GIT_SSH_COMMAND", self.ssh());
        if let Some(agent) = &self.request.agent {
            command.env("SSH_AUTH_SOCK", agent);
        }
        if let Some(authorization) = &self.request.authorization {
            command.env("GIT_CONFIG_COUNT", "1");
            command.env(
                "GIT_CONFIG_KEY_0",
                format!("http.{}.extraHeader", scope(&self.request.remote)),
            );
            let header = format!("Authorization: {}", authorization.expose());
            command.env("GIT_CONFIG_VALUE_0", header);
        }
    }

    /// ssh without the user's configuration. Hosts that the user knows must be who they were; others
    /// are taken at their word, as BuildKit takes all of them.
    fn ssh(&self) -> String {
        let known = std::env::var_os("HOME").map(|home| Path::new(&home).join(".ssh/known_hosts"));
        let known = known.filter(|path| path.is_file());
        let new = self.folder.join("known_hosts");
        let files = match &known {
            Some(path) => format!("{} {}", new.display(), path.display()),
            None => new.display().to_string(),
        };
        let quoted = files.replace('\'', "'\\''");
        format!(
            "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o 'UserKnownHostsFile={quoted}'"
        )
    }
}

/// Which addresses a token is sent to: the repository's; all of GitHub's for one of GitHub, whose
/// submodules are there as well (as BuildKit and GitHub's own checkout action do it).
fn scope(remote: &str) -> &str {
    ["https://github.com/", "https://www.github.com/"]
        .into_iter()
        .find(|prefix| remote.starts_with(prefix))
        .unwrap_or(remote)
}

fn read_back(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// git's own words, without its hints.
fn complaint(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("hint:"))
        .collect();
    let from = lines.len().saturating_sub(COMPLAINT_LINES);
    let said = lines[from..].join("; ");
    // An address in git's words may hold a password.
    match (said.find("://"), said.find('@')) {
        (Some(scheme), Some(at)) if scheme < at => {
            format!("{}{}", &said[..scheme + 3], &said[at + 1..])
        }
        _ => said,
    }
}

/// Of the lines of `ls-remote`: object and full name of a reference, and the commit behind an
/// annotated tag. Branches come before tags, as for `git checkout`.
fn pick(list: &str, reference: &str) -> Option<(String, String, Option<String>)> {
    let full = format!("refs/{}", reference.strip_prefix("refs/").unwrap_or(reference));
    let branch =
        format!("refs/heads/{}", reference.strip_prefix("refs/heads/").unwrap_or(reference));
    let tag = format!("refs/tags/{}", reference.strip_prefix("refs/tags/").unwrap_or(reference));
    let find = |name: &str| {
        let mut lines = list.lines().filter_map(|line| line.split_once('\t'));
        lines.find(|(_, found)| *found == name).map(|(id, _)| id.to_owned())
    };
    for name in [&full, &branch] {
        if let Some(id) = find(name) {
            let tagged =
                if name.starts_with("refs/tags/") { find(&format!("{name}^{{}}")) } else { None };
            return Some((id, name.clone(), tagged));
        }
    }
    let id = find(&tag)?;
    Some((id, tag.clone(), find(&format!("{tag}^{{}}"))))
}

/// Gives files the modes that git knows and, if asked, one time; takes every `.git` out unless it
/// is to stay. Links are never followed.
fn settle(folder: &Path, keep_git: bool, time: Option<SystemTime>) -> io::Result<()> {
    let mut open = vec![folder.to_owned()];
    let mut folders = Vec::new();
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if entry.file_name() == ".git" && !keep_git {
                if kind.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
            } else if kind.is_dir() {
                fs::set_permissions(&path, Permissions::from_mode(0o755))?;
                open.push(path.clone());
                folders.push(path);
            } else {
                if kind.is_file() && !path.starts_with(folder.join(".git")) {
                    let executable = entry.metadata()?.permissions().mode() & 0o111 != 0;
                    let mode = if executable { 0o755 } else { 0o644 };
                    fs::set_permissions(&path, Permissions::from_mode(mode))?;
                }
                set_time(&path, time)?;
            }
        }
    }
    // Folders last: what happens in them changes their times.
    folders.iter().rev().try_for_each(|path| set_time(path, time))
}

fn set_time(path: &Path, time: Option<SystemTime>) -> io::Result<()> {
    let Some(time) = time else { return Ok(()) };
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let stamp = Timespec { tv_sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    let times = Timestamps { last_access: stamp, last_modification: stamp };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::{complaint, pick, scope};

    #[test]
    fn branches_come_before_tags() {
        let list = "a\trefs/heads/v1\nb\trefs/tags/v1\nc\trefs/tags/v1^{}\nd\trefs/heads/x/v1\n";
        let found = |reference| pick(list, reference);
        assert_eq!(found("v1"), Some(("a".into(), "refs/heads/v1".into(), None)));
        let tag = Some(("b".into(), "refs/tags/v1".into(), Some("c".into())));
        assert_eq!(found("refs/tags/v1"), tag);
        assert_eq!(found("tags/v1"), tag);
        assert_eq!(found("x/v1").map(|f| f.0).as_deref(), Some("d"));
        assert_eq!(found("v2"), None);
    }

    #[test]
    fn passwords_stay_out_of_errors() {
        let said = complaint("hint: x\nfatal: cannot read https://u:secret@e.org/a.git\n");
        assert_eq!(said, "fatal: cannot read https://e.org/a.git");
        assert_eq!(scope("https://github.com/a/b.git"), "https://github.com/");
        assert_eq!(scope("https://e.org/a.git"), "https://e.org/a.git");
    }
}
