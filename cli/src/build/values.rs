//! Values of single options of `kiln build` that are more than a word.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use kiln_parser::duration;
use kiln_parser::git::GitRef;

use crate::failure::Failure;

/// What `--build-context NAME=VALUE` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ContextValue {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A git repository.
    Git(GitRef),
    /// A file by URL.
    Url(String),
    /// `target:STAGE`: a stage of the Dockerfile.
    Stage(String),
    /// `docker-image://REF`.
    Image(String),
    /// `oci-layout://PATH[:TAG|@DIGEST]`.
    Layout {
        /// The layout's folder.
        path: PathBuf,
        /// A tag or a digest; `None` for the only image in it.
        selector: Option<String>,
    },
}

/// Reads one `--build-context`.
///
/// # Errors
/// No `=`, an empty side, a kind of source that is not supported.
pub(crate) fn build_context(option: &str) -> Result<(String, ContextValue), Failure> {
    let bad = |why: &str| Failure::usage(format_args!("invalid --build-context `{option}`: {why}"));
    let (name, value) = option.split_once('=').ok_or_else(|| bad("it must be NAME=VALUE"))?;
    if name.is_empty() || value.is_empty() {
        return Err(bad("neither side may be empty"));
    }
    let value = if let Some(reference) = value.strip_prefix("docker-image://") {
        ContextValue::Image(reference.to_owned())
    } else if let Some(layout) = value.strip_prefix("oci-layout://") {
        layout_value(layout)
    } else if let Some(stage) = value.strip_prefix("target:") {
        ContextValue::Stage(stage.to_lowercase())
    } else if let Some(git) = GitRef::parse(value, true) {
        ContextValue::Git(git.map_err(|why| bad(&why))?)
    } else if value.starts_with("http://") || value.starts_with("https://") {
        ContextValue::Url(value.to_owned())
    } else if value.contains("://") {
        return Err(bad("this kind of context is not known").hint(
            "known: a folder, a git repository, https://…, docker-image://REF, oci-layout://PATH[:TAG|@DIGEST], target:STAGE",
        ));
    } else {
        let path = PathBuf::from(value);
        if !path.is_dir() {
            return Err(bad(&format!("folder `{value}` does not exist")));
        }
        ContextValue::Folder(path)
    };
    Ok((name.to_lowercase(), value))
}

fn layout_value(text: &str) -> ContextValue {
    if let Some((path, digest)) = text.split_once('@') {
        return ContextValue::Layout { path: path.into(), selector: Some(digest.to_owned()) };
    }
    match text.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') && !path.is_empty() => {
            ContextValue::Layout { path: path.into(), selector: Some(tag.to_owned()) }
        }
        _ => ContextValue::Layout { path: text.into(), selector: None },
    }
}

/// The address that is this machine's, wherever the step's network has it.
pub(crate) const HOST_GATEWAY: &str = "host-gateway";

/// Reads one `--add-host HOST:IP` or `HOST=IP`; several addresses are separated by commas, IPv6
/// ones may stand in brackets.
///
/// # Errors
/// No address, or something that is none.
pub(crate) fn add_host(option: &str) -> Result<Vec<(String, String)>, Failure> {
    let bad = |why: String| Failure::usage(format_args!("invalid --add-host `{option}`: {why}"));
    let (host, addresses) = option
        .split_once('=')
        .or_else(|| option.split_once(':'))
        .filter(|(host, _)| !host.is_empty())
        .ok_or_else(|| bad("it must be HOST:IP".to_owned()))?;
    let parse = |address: &str| {
        let bare = address.trim_start_matches('[').trim_end_matches(']');
        if bare == HOST_GATEWAY {
            return Ok(HOST_GATEWAY.to_owned());
        }
        let parsed: Result<IpAddr, _> = bare.parse();
        let known = parsed.map(|address| address.to_string());
        known.map_err(|_| bad(format!("`{address}` is not an IP address")))
    };
    addresses.split(',').map(|address| Ok((host.to_owned(), parse(address)?))).collect()
}

/// Reads `NAME=VALUE` or, with `bare`, a lone NAME.
///
/// # Errors
/// An empty name; no `=` where one is needed.
pub(crate) fn pair(flag: &str, option: &str) -> Result<(String, Option<String>), Failure> {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (option, None),
    };
    if name.is_empty() {
        return Err(Failure::usage(format_args!(
            "invalid --{flag} `{option}`: the name is missing"
        )));
    }
    Ok((name.to_owned(), value))
}

/// Reads a size as Docker's `RAMInBytes` does: `64m`, `1gb`, `1.5GiB`, `1048576`; units are powers
/// of 1024.
///
/// # Errors
/// Not a number, an unknown unit, a negative size.
pub(crate) fn bytes(flag: &str, option: &str) -> Result<u64, Failure> {
    kiln_parser::mount::bytes(option).ok_or_else(|| {
        Failure::usage(format_args!("invalid --{flag} `{option}`: not a size"))
            .hint("for example 64m or 1g")
    })
}

/// Reads how long something was not used: `36h`, `90m` as Go does, and `7d`, `2w`, or seconds.
///
/// # Errors
/// None of these, or less than nothing.
pub(crate) fn age(flag: &str, option: &str) -> Result<Duration, Failure> {
    const DAY: u64 = 24 * 3600;
    let text = option.trim();
    let whole = |suffix: &str, seconds: u64| {
        let number: u64 = text.strip_suffix(suffix)?.parse().ok()?;
        number.checked_mul(seconds).map(Duration::from_secs)
    };
    let nanoseconds = || u64::try_from(duration::parse(text).ok()?).ok().map(Duration::from_nanos);
    whole("", 1)
        .or_else(|| whole("d", DAY))
        .or_else(|| whole("w", 7 * DAY))
        .or_else(nanoseconds)
        .ok_or_else(|| {
            Failure::usage(format_args!("invalid {flag} `{option}`: not a duration"))
                .hint("for example 24h or 7d")
        })
}

#[cfg(test)]
mod tests {
    use super::{ContextValue, add_host, age, build_context, bytes, pair};

    #[test]
    fn ages() {
        for (text, seconds) in
            [("24h", 86_400), ("7d", 604_800), ("2w", 1_209_600), ("90", 90), ("1h30m", 5400)]
        {
            assert_eq!(age("--until", text).expect(text).as_secs(), seconds, "{text}");
        }
        for wrong in ["", "d", "-1h", "soon", "1y"] {
            assert!(age("--until", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn contexts() {
        let (name, value) = build_context("Base=docker-image://debian:12").expect("valid");
        assert_eq!((name.as_str(), value), ("base", ContextValue::Image("debian:12".into())));
        for (text, path, selector) in [
            ("oci-layout:///a/b:latest", "/a/b", Some("latest")),
            ("oci-layout://a/b", "a/b", None),
            ("oci-layout://a@sha256:00", "a", Some("sha256:00")),
            ("oci-layout:///a:b/c", "/a:b/c", None),
        ] {
            let (_, value) = build_context(&format!("x={text}")).expect(text);
            let selector = selector.map(str::to_owned);
            assert_eq!(value, ContextValue::Layout { path: path.into(), selector }, "{text}");
        }
        assert!(build_context("x").is_err());
        assert!(build_context("x=/nowhere/at/all").is_err());
        assert!(build_context("x=ftp://e.org/a").is_err());
        let (_, git) = build_context("x=https://e.org/a.git#main").expect("valid");
        assert!(matches!(git, ContextValue::Git(git) if git.reference == "main"));
        let (_, url) = build_context("x=https://e.org/a.tar").expect("valid");
        assert_eq!(url, ContextValue::Url("https://e.org/a.tar".into()));
    }

    #[test]
    fn hosts() {
        assert_eq!(add_host("a:10.0.0.1").expect("valid").len(), 1);
        assert_eq!(add_host("a=[::1],10.0.0.1").expect("valid").len(), 2);
        assert_eq!(add_host("a=host-gateway").expect("valid")[0].1, "host-gateway");
        assert_eq!(add_host("a:::1").expect("valid")[0].1, "::1");
        for wrong in ["a", "a:b", ":10.0.0.1"] {
            assert!(add_host(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        for (text, size) in [("1", 1), ("64m", 64 << 20), ("1.5k", 1536), ("2GiB", 2 << 30)] {
            assert_eq!(bytes("shm-size", text).expect(text), size);
        }
        for wrong in ["", "m", "-1", "1x"] {
            assert!(bytes("shm-size", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pairs() {
        assert_eq!(pair("label", "a=b=c").expect("valid"), ("a".into(), Some("b=c".into())));
        assert_eq!(pair("label", "a").expect("valid"), ("a".into(), None));
        assert!(pair("label", "=b").is_err());
    }
}
