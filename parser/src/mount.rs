//! `RUN --mount=…`: typed mounts. Values may hold variables, so they are read when the stage is
//! lowered; what can be told before is told by [`check`].

use serde::{Deserialize, Serialize};

use crate::diagnostic::Diagnostic;
use crate::instruction::Word;
use crate::suggest;

/// The kinds of mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MountKind {
    /// Files of a context, stage or image.
    #[default]
    Bind,
    /// A folder that stays from build to build.
    Cache,
    /// Memory.
    Tmpfs,
    /// A secret.
    Secret,
    /// The caller's SSH agent.
    Ssh,
}

/// How steps share a cache mount.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub enum Sharing {
    /// All at once.
    #[default]
    Shared,
    /// One folder for each user at a time.
    Private,
    /// One after the other.
    Locked,
}

/// One `--mount`, values expanded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountFlag {
    /// The kind.
    pub kind: MountKind,
    /// `from`.
    pub from: Option<String>,
    /// `source`.
    pub source: Option<String>,
    /// `target`.
    pub target: Option<String>,
    /// `readonly`, with the kind's default.
    pub read_only: bool,
    /// `id`.
    pub id: Option<String>,
    /// `sharing`.
    pub sharing: Option<Sharing>,
    /// `required`.
    pub required: bool,
    /// `size`, bytes.
    pub size: Option<u64>,
    /// `mode`.
    pub mode: Option<u32>,
    /// `uid`.
    pub uid: Option<u32>,
    /// `gid`.
    pub gid: Option<u32>,
    /// `env`.
    pub env: Option<String>,
}

const KEYS: &[&str] = &[
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

/// Tells what is wrong with a mount before its variables are known.
///
/// # Errors
/// A variable in `from`, broken quotes.
pub fn check(word: &Word) -> Result<(), Diagnostic> {
    for field in fields(word)? {
        if let Some((key, value)) = field.split_once('=')
            && key.eq_ignore_ascii_case("from")
            && value.find('$').is_some_and(|at| at + 1 < value.len())
        {
            let message = "'from' doesn't support variable expansion, define alias stage instead";
            return Err(Diagnostic::error(word.span, message)
                .help("add a stage FROM ${VARIABLE} AS name and write from=name"));
        }
    }
    Ok(())
}

/// The `from` of a mount, which may not hold variables and so is known early.
#[must_use]
pub fn from(word: &Word) -> Option<String> {
    let fields = fields(word).ok()?;
    let pairs = fields.iter().filter_map(|field| field.split_once('='));
    let mut named = pairs.filter(|(key, _)| key.eq_ignore_ascii_case("from"));
    named.next_back().map(|(_, value)| value.to_owned()).filter(|name| !name.is_empty())
}

/// Reads a mount; `expand` replaces variables in one value.
///
/// # Errors
/// An unknown key or value, a key that does not go with the kind.
pub fn parse(
    word: &Word,
    expand: &mut dyn FnMut(&str) -> Result<String, Diagnostic>,
) -> Result<MountFlag, Diagnostic> {
    check(word)?;
    let mut mount = MountFlag::default();
    let mut read_only = None;
    for field in fields(word)? {
        match field.split_once('=') {
            None => flag_alone(&mut mount, &mut read_only, &field, word)?,
            Some((key, value)) => {
                let key = key.to_ascii_lowercase();
                let value = if key == "from" { value.to_owned() } else { expand(value)? };
                set(&mut mount, &mut read_only, (&key, &value, &field), word)?;
            }
        }
    }
    let writable = matches!(mount.kind, MountKind::Cache | MountKind::Tmpfs);
    mount.read_only = read_only.unwrap_or(!writable);
    consistent(&mount).map_err(|message| Diagnostic::error(word.span, message))?;
    Ok(mount)
}

fn fields(word: &Word) -> Result<Vec<String>, Diagnostic> {
    let mut fields = Vec::new();
    let mut field = String::new();
    let mut chars = word.text.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => field.push('"'),
            '"' if quoted || field.is_empty() => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    if quoted {
        return Err(Diagnostic::error(
            word.span,
            "failed to parse csv mounts: a quote is not closed",
        ));
    }
    fields.push(field);
    Ok(fields)
}

fn flag_alone(
    mount: &mut MountFlag,
    read_only: &mut Option<bool>,
    field: &str,
    word: &Word,
) -> Result<(), Diagnostic> {
    match field.to_ascii_lowercase().as_str() {
        "readonly" | "ro" => *read_only = Some(true),
        "readwrite" | "rw" => *read_only = Some(false),
        "required" if takes_required(mount.kind) => mount.required = true,
        "required" => return Err(wrong_kind(mount.kind, "required", word)),
        _ => {
            let message = format!("invalid field '{field}' must be a key=value pair");
            return Err(Diagnostic::error(word.span, message)
                .help("mount options are key=value pairs with commas between them"));
        }
    }
    Ok(())
}

fn set(
    mount: &mut MountFlag,
    read_only: &mut Option<bool>,
    (key, value, field): (&str, &str, &str),
    word: &Word,
) -> Result<(), Diagnostic> {
    let bad_value = || Diagnostic::error(word.span, format!("invalid value for {key}: {value}"));
    let bad_number = || Diagnostic::error(word.span, format!("invalid value {value} for {key}"));
    // `from=` with nothing behind it is as if it were not there.
    let text = || (!value.is_empty()).then(|| value.to_owned());
    match key {
        "type" => mount.kind = kind(value, word)?,
        "from" => mount.from = text(),
        "source" | "src" => mount.source = text(),
        "target" | "dst" | "destination" => mount.target = text(),
        "readonly" | "ro" => *read_only = Some(boolean(value).ok_or_else(bad_value)?),
        "readwrite" | "rw" => *read_only = Some(!boolean(value).ok_or_else(bad_value)?),
        "required" if takes_required(mount.kind) => {
            mount.required = boolean(value).ok_or_else(bad_value)?;
        }
        "size" if mount.kind == MountKind::Tmpfs => {
            mount.size = Some(bytes(value).ok_or_else(bad_value)?);
        }
        "required" | "size" => return Err(wrong_kind(mount.kind, key, word)),
        "id" => mount.id = text(),
        "sharing" => mount.sharing = Some(sharing(value, word)?),
        "mode" => mount.mode = Some(u32::from_str_radix(value, 8).map_err(|_| bad_number())?),
        "uid" => mount.uid = Some(value.parse().map_err(|_| bad_number())?),
        "gid" => mount.gid = Some(value.parse().map_err(|_| bad_number())?),
        "env" => mount.env = Some(value.to_owned()),
        _ => {
            let message = format!("unexpected key '{key}' in '{field}'");
            let near = suggest::did_you_mean(key, KEYS.iter().copied());
            let help = near.unwrap_or_else(|| format!("known keys: {}", KEYS.join(", ")));
            return Err(Diagnostic::error(word.span, message).help(help));
        }
    }
    Ok(())
}

const fn takes_required(kind: MountKind) -> bool {
    matches!(kind, MountKind::Secret | MountKind::Ssh)
}

fn wrong_kind(kind: MountKind, key: &str, word: &Word) -> Diagnostic {
    let message = format!("unexpected key '{key}' for mount type '{}'", name(kind));
    Diagnostic::error(word.span, message).help("type= has to stand in front of it")
}

/// The word of a kind in a Dockerfile.
#[must_use]
pub const fn name(kind: MountKind) -> &'static str {
    match kind {
        MountKind::Bind => "bind",
        MountKind::Cache => "cache",
        MountKind::Tmpfs => "tmpfs",
        MountKind::Secret => "secret",
        MountKind::Ssh => "ssh",
    }
}

fn kind(value: &str, word: &Word) -> Result<MountKind, Diagnostic> {
    const KINDS: &[MountKind] =
        &[MountKind::Bind, MountKind::Cache, MountKind::Tmpfs, MountKind::Secret, MountKind::Ssh];
    let lower = value.to_ascii_lowercase();
    KINDS.iter().copied().find(|&kind| name(kind) == lower).ok_or_else(|| {
        let near = suggest::did_you_mean(value, KINDS.iter().map(|&kind| name(kind)));
        let help =
            near.unwrap_or_else(|| "mount types: bind, cache, tmpfs, secret, ssh".to_owned());
        Diagnostic::error(word.span, format!("unsupported mount type {value:?}")).help(help)
    })
}

fn sharing(value: &str, word: &Word) -> Result<Sharing, Diagnostic> {
    match value.to_ascii_lowercase().as_str() {
        "shared" => Ok(Sharing::Shared),
        "private" => Ok(Sharing::Private),
        "locked" => Ok(Sharing::Locked),
        _ => {
            let near = suggest::did_you_mean(value, ["shared", "private", "locked"]);
            let help = near.unwrap_or_else(|| "sharing is shared, private or locked".to_owned());
            Err(Diagnostic::error(word.span, format!("unsupported sharing value {value:?}"))
                .help(help))
        }
    }
}

/// Go's `strconv.ParseBool`.
pub(crate) fn boolean(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Docker's `RAMInBytes`: a number, which may be a fraction, and a unit of powers of 1024.
#[must_use]
pub fn bytes(value: &str) -> Option<u64> {
    let split = value.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(value.len());
    let number: f64 = value[..split].parse().ok()?;
    let power = match value[split..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        _ => return None,
    };
    let size = number * 1024_f64.powi(power);
    if !(0.0..9.0e18).contains(&size) {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked just above"
    )]
    let size = size as u64;
    Some(size)
}

fn consistent(mount: &MountFlag) -> Result<(), String> {
    let with_owner = matches!(mount.kind, MountKind::Secret | MountKind::Ssh | MountKind::Cache);
    let kind = name(mount.kind);
    if !with_owner {
        let given = [("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)];
        if let Some((key, _)) = given.iter().find(|(_, value)| value.is_some()) {
            return Err(format!("{key} not allowed for {kind:?} type mounts"));
        }
    }
    if mount.kind == MountKind::Secret {
        if mount.from.is_some() {
            return Err("secret mount should not have a from".to_owned());
        }
        if mount.sharing.is_some() {
            return Err("secret mount should not define sharing".to_owned());
        }
        if mount.source.is_none() && mount.target.is_none() && mount.id.is_none() {
            return Err("invalid secret mount. one of source, target required".to_owned());
        }
        if mount.source.is_some() && mount.id.is_some() {
            return Err("both source and id can't be set".to_owned());
        }
    }
    if mount.sharing.is_some() && mount.kind != MountKind::Cache {
        return Err(format!("invalid cache sharing set for {kind} mount"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{MountFlag, MountKind, Sharing, parse};
    use crate::instruction::Word;

    fn read(text: &str) -> Result<MountFlag, String> {
        let word = Word { text: text.to_owned(), ..Word::default() };
        parse(&word, &mut |value| Ok(value.to_owned())).map_err(|d| d.message)
    }

    #[test]
    fn kinds_have_their_defaults() {
        let cache = read("type=cache,target=/a,sharing=locked,mode=0755,uid=5").expect("valid");
        assert_eq!(
            (cache.kind, cache.sharing, cache.mode),
            (MountKind::Cache, Some(Sharing::Locked), Some(0o755))
        );
        assert!(!cache.read_only);
        assert!(read("target=/a").expect("valid").read_only);
        assert!(!read("target=/a,rw").expect("valid").read_only);
        assert_eq!(read("type=tmpfs,dst=/a,size=2m").expect("valid").size, Some(2 << 20));
        assert!(read("type=secret,id=a,required").expect("valid").required);
        assert!(read("type=secret,id=a,src=,from=").is_ok());
        assert_eq!(read("\"target=/a,b\"").expect("valid").target.as_deref(), Some("/a,b"));
    }

    #[test]
    fn mistakes() {
        for (text, expect) in [
            ("type=tmp,target=/a", "unsupported mount type \"tmp\""),
            ("typ=tmpfs", "unexpected key 'typ' in 'typ=tmpfs'"),
            ("target", "invalid field 'target' must be a key=value pair"),
            (
                "target=/a,from=$x",
                "'from' doesn't support variable expansion, define alias stage instead",
            ),
            ("target=/a,mode=755", "mode not allowed for \"bind\" type mounts"),
            ("target=/a,sharing=shared", "invalid cache sharing set for bind mount"),
            ("type=cache,sharing=al", "unsupported sharing value \"al\""),
            ("type=secret", "invalid secret mount. one of source, target required"),
            ("type=secret,id=", "invalid secret mount. one of source, target required"),
            ("type=secret,id=a,from=b", "secret mount should not have a from"),
            ("type=secret,id=a,src=b", "both source and id can't be set"),
            ("type=cache,target=/a,required", "unexpected key 'required' for mount type 'cache'"),
        ] {
            assert_eq!(read(text), Err(expect.to_owned()), "{text}");
        }
    }
}
