//! Users and groups of an image: its own /etc/passwd and /etc/group, never the host's.

use std::io::Read;
use std::path::Path;

use kiln_cache::{View, resolve};
use thiserror::Error;

/// /etc/passwd and /etc/group beyond this size are refused.
const FILE_BYTES_MAX: u64 = 10 << 20;

/// Who a step runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory, where the file says one.
    pub home: Option<String>,
}

/// Why a user cannot be found; the words are runc's.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UserError {
    /// A name that is not in the file.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// A group that is not in the file.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// An id beyond 2^31 - 1.
    #[error("uids and gids must be in range 0-2147483647: `{0}`")]
    Range(String),
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_lines(text: &str) -> impl Iterator<Item = PasswdLine<'_>> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse().ok());
        let name = fields.first().filter(|name| !name.is_empty())?;
        Some(PasswdLine {
            name,
            uid: number(2)?,
            gid: number(3).unwrap_or(0),
            home: fields.get(5).copied().unwrap_or_default(),
        })
    })
}

struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn group_lines(text: &str) -> impl Iterator<Item = GroupLine<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(GroupLine { name, gid, members: fields.next().unwrap_or_default() })
    })
}

fn id(text: &str) -> Result<Option<u32>, UserError> {
    match text.parse::<i64>() {
        Ok(number) => match u32::try_from(number) {
            Ok(id) if id <= i32::MAX.unsigned_abs() => Ok(Some(id)),
            _ => Err(UserError::Range(text.to_owned())),
        },
        Err(_) => Ok(None),
    }
}

/// `USER` as runc resolves it: empty is root, names must exist, an unknown number is taken as it
/// is, an explicit group leaves no supplementary groups.
///
/// # Errors
/// A name that is in neither file.
pub fn lookup(passwd: &str, group: &str, spec: &str) -> Result<User, UserError> {
    let (user_text, group_text) = match spec.split_once(':') {
        Some((user, group)) => (user, (!group.is_empty()).then_some(group)),
        None => (spec, None),
    };
    let user_text = if user_text.is_empty() { "0" } else { user_text };
    let number = id(user_text)?;
    let line =
        passwd_lines(passwd).find(|line| line.name == user_text || (number == Some(line.uid)));
    let mut user = match (line.as_ref(), number) {
        (Some(line), _) => User {
            uid: line.uid,
            gid: line.gid,
            groups: Vec::new(),
            home: (!line.home.is_empty()).then(|| line.home.to_owned()),
        },
        (None, Some(uid)) => User { uid, ..User::default() },
        (None, None) if user_text == "root" => User::default(),
        (None, None) => return Err(UserError::NoUser(user_text.to_owned())),
    };
    match (group_text, line) {
        (Some(text), _) => user.gid = group_id(group, text)?,
        (None, Some(line)) => {
            let member = |group: &GroupLine<'_>| group.members.split(',').any(|m| m == line.name);
            user.groups = group_lines(group).filter(member).map(|group| group.gid).collect();
        }
        (None, None) => {}
    }
    if !user.groups.contains(&user.gid) {
        user.groups.insert(0, user.gid);
    }
    Ok(user)
}

fn group_id(group: &str, text: &str) -> Result<u32, UserError> {
    let number = id(text)?;
    let line = group_lines(group).find(|line| line.name == text || number == Some(line.gid));
    match (line, number) {
        (Some(line), _) => Ok(line.gid),
        (None, Some(gid)) => Ok(gid),
        (None, None) => Err(UserError::NoGroup(text.to_owned())),
    }
}

/// `--chown` as BuildKit resolves it: a name that is not there is id 0; a number alone is the
/// group as well; a name alone brings its primary group.
#[must_use]
pub fn lookup_chown(passwd: &str, group: &str, spec: &str) -> (u32, u32) {
    let (user_text, group_text) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let (uid, own_gid) = match user_text.parse::<u32>() {
        Ok(uid) => (uid, uid),
        Err(_) if matches!(user_text, "root" | "") => (0, 0),
        Err(_) => passwd_lines(passwd)
            .find(|line| line.name == user_text)
            .map_or((0, 0), |line| (line.uid, line.gid)),
    };
    let gid = match group_text {
        None => own_gid,
        Some(text) => text.parse().unwrap_or_else(|_| {
            group_lines(group).find(|line| line.name == text).map_or(0, |line| line.gid)
        }),
    };
    (uid, gid)
}

/// The text of a small file of an image; empty where it is missing, too large or no file.
#[must_use]
pub fn read_small(view: &dyn View, path: &Path) -> String {
    let Ok(path) = resolve(view, path, true) else { return String::new() };
    let Ok(file) = view.open(&path) else { return String::new() };
    let mut bytes = Vec::new();
    match file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes) {
        Ok(length) if length as u64 <= FILE_BYTES_MAX => {
            String::from_utf8_lossy(&bytes).into_owned()
        }
        _ => String::new(),
    }
}

/// Whether a `--chown` names something that needs the files.
#[must_use]
pub fn is_numeric_chown(spec: &str) -> bool {
    spec.split(':').all(|part| part.is_empty() || part == "root" || part.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::{User, lookup, lookup_chown};

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34::/var/www:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nextra:x:50:www,other\n";

    #[test]
    fn users_as_runc_finds_them() {
        let check = |spec: &str, uid, gid, groups: &[u32]| {
            let user = lookup(PASSWD, GROUP, spec).expect(spec);
            assert_eq!((user.uid, user.gid, user.groups.as_slice()), (uid, gid, groups), "{spec}");
        };
        check("", 0, 0, &[0]);
        check("www", 33, 34, &[34, 50]);
        check("33", 33, 34, &[34, 50]);
        check("www:extra", 33, 50, &[50]);
        check("www:7", 33, 7, &[7]);
        check("4242", 4242, 0, &[0]);
        check("4242:33", 4242, 33, &[33]);
        assert!(lookup(PASSWD, GROUP, "nobody").is_err());
        assert!(lookup(PASSWD, GROUP, "www:nobody").is_err());
        assert!(lookup(PASSWD, GROUP, "-1").is_err());
        assert_eq!(
            lookup("", "", "root").expect("root"),
            User { groups: vec![0], ..User::default() }
        );
        assert_eq!(lookup(PASSWD, "", "www").expect("www").home.as_deref(), Some("/var/www"));
    }

    #[test]
    fn owners_as_buildkit_finds_them() {
        for (spec, expect) in [
            ("www", (33, 34)),
            ("7", (7, 7)),
            ("7:8", (7, 8)),
            ("www:extra", (33, 50)),
            ("nobody", (0, 0)),
            ("nobody:nogroup", (0, 0)),
            ("root", (0, 0)),
            (":extra", (0, 50)),
        ] {
            assert_eq!(lookup_chown(PASSWD, GROUP, spec), expect, "{spec}");
        }
    }
}
