//! Addresses of git repositories as contexts and as sources of ADD: `https://host/repo.git#ref:dir`,
//! `git@host:path`, `ssh://`, `git://`, and the query form `?ref=…&subdir=…` (BuildKit's
//! `dfgitutil.ParseGitRef`). `file://` is understood as well; only a context may be one.

use std::fmt;

/// Where a checkout comes from, and which part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the address's query")]
pub struct GitRef {
    /// What git is given: the address without fragment and query.
    pub remote: String,
    /// Branch, tag, full reference or commit; empty for the default branch.
    pub reference: String,
    /// The folder of the repository that is taken, `a/b`; empty for all of it.
    pub subdir: String,
    /// A commit, or the beginning of one, that the reference has to be.
    pub checksum: String,
    /// Whether `.git` stays.
    pub keep_git_dir: bool,
    /// Submodules are left out.
    pub skip_submodules: bool,
    /// Files get the time of the commit instead of that of the checkout.
    pub commit_times: bool,
    /// The commit of `checksum` is fetched without asking what the reference is.
    pub fetch_by_commit: bool,
}

/// The address without a password, for people.
impl fmt::Display for GitRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.remote.split_once("://") {
            Some((scheme, rest)) => {
                let end = rest.find('/').unwrap_or(rest.len());
                let host = rest[..end].rsplit('@').next().unwrap_or_default();
                write!(f, "{scheme}://{host}{}", &rest[end..])?;
            }
            None => f.write_str(&self.remote)?,
        }
        match (self.reference.is_empty(), self.subdir.is_empty()) {
            (true, true) => Ok(()),
            (_, true) => write!(f, "#{}", self.reference),
            (_, false) => write!(f, "#{}:{}", self.reference, self.subdir),
        }
    }
}

impl GitRef {
    /// Reads an address. `None` for what is no git address at all. With `context`, what only the
    /// caller may name is one, too: `github.com/user/repo` and `file://`.
    #[must_use]
    pub fn parse(text: &str, context: bool) -> Option<Result<Self, String>> {
        if text.starts_with("./") || text.starts_with("../") {
            return None;
        }
        if context && text.starts_with("github.com/") {
            return Some(Self::from_url(&format!("https://{text}")));
        }
        if let Some((scheme, _)) = text.split_once("://") {
            let path = text.split(['#', '?']).next().unwrap_or_default();
            let is_git = match scheme.to_ascii_lowercase().as_str() {
                "http" | "https" => path.ends_with(".git"),
                "git" | "ssh" => true,
                "file" => context,
                _ => false,
            };
            return is_git.then(|| Self::from_url(text));
        }
        is_scp(text).then(|| Self::from_url(text))
    }

    fn from_url(text: &str) -> Result<Self, String> {
        let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (remote, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        let mut git = Self {
            remote: remote.to_owned(),
            reference: reference.to_owned(),
            subdir: crate::ignore::clean(&format!("/{subdir}")),
            ..Self::default()
        };
        git.read_query(query)?;
        // An option of git's programs, were it not checked.
        for (what, value) in [("reference", &git.reference), ("address", &git.remote)] {
            if value.starts_with('-') || value.contains(['\n', '\0', ' ']) {
                return Err(format!("invalid git {what} {value:?}"));
            }
        }
        Ok(git)
    }

    fn read_query(&mut self, query: &str) -> Result<(), String> {
        let mut seen: Vec<String> = Vec::new();
        let mut named: Option<(&str, String)> = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (unescape(key), unescape(value));
            if seen.contains(&key) {
                return Err(format!("query {key:?} has multiple values"));
            }
            let flag = matches!(key.as_str(), "submodules" | "keep-git-dir" | "fetch-by-commit");
            if value.is_empty() && !flag {
                return Err(format!("query {key:?} has no value"));
            }
            match key.as_str() {
                "ref" => merge("ref", &mut self.reference, value)?,
                "tag" | "branch" => {
                    let prefix = if key == "tag" { "refs/tags/" } else { "refs/heads/" };
                    let full =
                        if value.starts_with(prefix) { value } else { prefix.to_owned() + &value };
                    if named.is_some() {
                        return Err("branch conflicts with tag".to_owned());
                    }
                    named = Some(("ref", full));
                }
                "subdir" => {
                    let subdir = crate::ignore::clean(&format!("/{value}"));
                    merge("subdir", &mut self.subdir, subdir)?;
                }
                "checksum" | "commit" => self.checksum = value,
                "keep-git-dir" => self.keep_git_dir = boolean(&key, &value)?,
                "submodules" => self.skip_submodules = !boolean(&key, &value)?,
                "fetch-by-commit" => self.fetch_by_commit = boolean(&key, &value)?,
                "mtime" => match value.as_str() {
                    "checkout" => self.commit_times = false,
                    "commit" => self.commit_times = true,
                    _ => {
                        return Err(format!(
                            "invalid mtime value: {value:?} (must be \"checkout\" or \"commit\")"
                        ));
                    }
                },
                _ => return Err(format!("unexpected query {key:?}")),
            }
            seen.push(key);
        }
        match named {
            Some((what, full)) => merge(what, &mut self.reference, full),
            None => Ok(()),
        }
    }

    /// The commit, where the reference is one in full.
    #[must_use]
    pub fn commit(&self) -> Option<&str> {
        if self.fetch_by_commit && is_commit(&self.checksum) {
            return Some(&self.checksum);
        }
        is_commit(&self.reference).then_some(self.reference.as_str())
    }
}

/// 40 or 64 hexadecimal digits.
#[must_use]
pub fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn merge(what: &str, known: &mut String, value: String) -> Result<(), String> {
    if !known.is_empty() && *known != value {
        return Err(format!("{what} conflicts: {known:?} vs {value:?}"));
    }
    *known = value;
    Ok(())
}

fn boolean(key: &str, value: &str) -> Result<bool, String> {
    if value.is_empty() {
        return Ok(true);
    }
    crate::mount::boolean(value).ok_or_else(|| format!("invalid {key} value: {value:?}"))
}

/// `user@host:path`, as ssh and scp have it.
fn is_scp(text: &str) -> bool {
    let Some((user, rest)) = text.split_once('@') else { return false };
    let Some((host, path)) = rest.split_once(':') else { return false };
    let word = |text: &str, more: &[char]| {
        !text.is_empty()
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(&c))
            && !text.starts_with('-')
    };
    word(user, &['-', '_']) && word(host, &['-', '.']) && !path.is_empty()
}

/// Undoes percent-encoding; what is broken stays as it is.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        match (first, hex.and_then(|pair| u8::from_str_radix(pair, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            (byte, _) => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::GitRef;

    #[test]
    fn what_is_an_address() {
        for (text, add, context) in [
            ("https://e.org/a.git", true, true),
            ("https://e.org/a.git#v1:sub", true, true),
            ("https://e.org/a.git?ref=v1", true, true),
            ("https://e.org/a.tar.gz", false, false),
            ("git://e.org/a", true, true),
            ("ssh://git@e.org/a", true, true),
            ("git@e.org:a/b.git", true, true),
            ("me@e.org:a", true, true),
            ("-x@e.org:a", false, false),
            ("github.com/a/b", false, true),
            ("file:///srv/a.git", false, true),
            ("./a@b:c", false, false),
            ("a/b", false, false),
            ("ext::sh -c x", false, false),
        ] {
            assert_eq!(GitRef::parse(text, false).is_some(), add, "ADD {text}");
            assert_eq!(GitRef::parse(text, true).is_some(), context, "context {text}");
        }
    }

    fn read(text: &str) -> Result<GitRef, String> {
        GitRef::parse(text, false).expect("a git address")
    }

    #[test]
    fn parts() {
        let git = read("https://u:p@e.org/a.git#baz/qux:quux/../quuz").expect("valid");
        assert_eq!(git.remote, "https://u:p@e.org/a.git");
        assert_eq!((git.reference.as_str(), git.subdir.as_str()), ("baz/qux", "quuz"));
        assert_eq!(git.to_string(), "https://e.org/a.git#baz/qux:quuz");
        let git = read("git@e.org:a?tag=v1&subdir=%2Fx&keep-git-dir&submodules=false&mtime=commit");
        let git = git.expect("valid");
        assert_eq!((git.reference.as_str(), git.subdir.as_str()), ("refs/tags/v1", "x"));
        assert!(git.keep_git_dir && git.skip_submodules && git.commit_times);
        assert_eq!(read("git://e.org/a?branch=b").expect("valid").reference, "refs/heads/b");
    }

    #[test]
    fn mistakes() {
        for (text, why) in [
            ("git://e.org/a?x=1", "unexpected query \"x\""),
            ("git://e.org/a?ref=a#b", "ref conflicts: \"b\" vs \"a\""),
            ("git://e.org/a?tag=a&branch=b", "branch conflicts with tag"),
            ("git://e.org/a?ref=", "query \"ref\" has no value"),
            ("git://e.org/a?ref=a&ref=a", "query \"ref\" has multiple values"),
            ("git://e.org/a?submodules=x", "invalid submodules value: \"x\""),
            ("git://e.org/a#--upload-pack=x", "invalid git reference \"--upload-pack=x\""),
        ] {
            assert_eq!(read(text).err().as_deref(), Some(why), "{text}");
        }
    }

    #[test]
    fn whole_commits_need_no_question() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(read(&format!("git://e.org/a#{commit}")).expect("valid").commit(), Some(commit));
        assert_eq!(read("git://e.org/a#01234567").expect("valid").commit(), None);
        let url = format!("git://e.org/a?checksum={commit}&fetch-by-commit#v1");
        assert_eq!(read(&url).expect("valid").commit(), Some(commit));
    }
}
