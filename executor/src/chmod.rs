//! Modes as `--chmod` gives them: octal, or the symbolic form of chmod(1) with umask 0.
//!
//! The symbolic form follows BSD's setmode(3), as BuildKit does: without `ugoa` all classes are
//! meant, `X` looks at the mode before the change, `=` also clears set-id bits of its class.

use thiserror::Error;

const SET_UID: u32 = 0o4000;
pub(crate) const SET_GID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
/// Everything that `=` without a class clears.
const STANDARD: u32 = SET_UID | SET_GID | 0o777;

/// A mode to set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Chmod {
    /// `0755`: replaces all 12 bits, of files and directories.
    Octal(u32),
    /// `u=rwX,go=rX`: changes the mode of each file.
    Symbolic(String),
}

/// A mode that is none.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "invalid chmod parameter: `{text}`, it should be an octal number between 0 and 07777 \
     or symbolic as in `u=rwX,go=rX`"
)]
pub struct ChmodError {
    /// What was given.
    pub text: String,
}

/// A mode, read and ready to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Octal(u32),
    Symbolic(Vec<Step>),
}

/// One operation of a clause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    operation: Operation,
    /// The bits it may touch.
    who: u32,
    value: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Add,
    Remove,
    Set,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// These bits, and execution where [`Change::apply`] finds it, for `X`.
    Bits { bits: u32, search: bool },
    /// What the class at this shift (6, 3 or 0) has.
    Copy(u32),
}

impl Change {
    /// Reads a mode.
    pub(crate) fn of(chmod: &Chmod) -> Result<Self, ChmodError> {
        let error = |text: String| ChmodError { text };
        match chmod {
            Chmod::Octal(mode) if *mode <= 0o7777 => Ok(Self::Octal(*mode)),
            Chmod::Octal(mode) => Err(error(format!("{mode:o}"))),
            Chmod::Symbolic(text) => {
                parse(text).map(Self::Symbolic).ok_or_else(|| error(text.clone()))
            }
        }
    }

    /// What `mode` becomes.
    pub(crate) fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        match self {
            Self::Octal(mode) => *mode,
            Self::Symbolic(steps) => steps.iter().fold(mode, |now, step| {
                let bits = match step.value {
                    Value::Bits { bits, search } => {
                        let search = search && (is_dir || mode & 0o111 != 0);
                        bits | if search { 0o111 } else { 0 }
                    }
                    Value::Copy(shift) => ((now >> shift) & 7) * 0o111,
                };
                match step.operation {
                    Operation::Add => now | (bits & step.who),
                    Operation::Remove => now & !(bits & step.who),
                    Operation::Set => (now & !(step.who & STANDARD)) | (bits & step.who),
                }
            }),
        }
    }
}

fn parse(text: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    for clause in text.split(',') {
        let end = clause.find(['+', '-', '='])?;
        let (classes, mut rest) = clause.split_at(end);
        let who = classes.chars().try_fold(0, |who, class| {
            Some(
                who | match class {
                    'u' => SET_UID | 0o700,
                    'g' => SET_GID | 0o070,
                    'o' => 0o007,
                    'a' => STANDARD,
                    _ => return None,
                },
            )
        })?;
        while let Some(operation) = rest.chars().next() {
            let operation = match operation {
                '+' => Operation::Add,
                '-' => Operation::Remove,
                _ => Operation::Set,
            };
            let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |at| at + 1);
            steps.push(step(operation, who, &rest[1..end])?);
            rest = &rest[end..];
        }
    }
    Some(steps)
}

fn step(operation: Operation, who: u32, letters: &str) -> Option<Step> {
    let others_only = who == 0o007;
    let mut all = if who == 0 { STANDARD } else { who };
    let copied = match letters {
        "u" => Some(6),
        "g" => Some(3),
        "o" => Some(0),
        _ => None,
    };
    if let Some(shift) = copied {
        return Some(Step { operation, who: all, value: Value::Copy(shift) });
    }
    let (mut bits, mut search) = (0, false);
    for letter in letters.chars() {
        match letter {
            'r' => bits |= 0o444,
            'w' => bits |= 0o222,
            'x' => bits |= 0o111,
            'X' => search = true,
            // For others alone, these two mean nothing.
            's' if others_only => {}
            's' => bits |= SET_UID | SET_GID,
            't' if others_only => {}
            't' => {
                all |= STICKY;
                bits |= STICKY;
            }
            _ => return None,
        }
    }
    Some(Step { operation, who: all, value: Value::Bits { bits, search } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_modes() {
        let check = |text: &str, mode: u32, is_dir: bool, expect: u32| {
            let change = Change::of(&Chmod::Symbolic(text.to_owned())).unwrap();
            let result = change.apply(mode, is_dir);
            assert_eq!(result, expect, "{text} on {mode:o}: {result:o}, not {expect:o}");
        };
        check("+x", 0o640, false, 0o751);
        check("+x", 0o700, true, 0o711);
        check("u=rwX,go=rX", 0o640, false, 0o644);
        check("u=rwX,go=rX", 0o700, true, 0o755);
        check("u=rwX,go=rX", 0o750, false, 0o755);
        check("g=u,o=", 0o640, false, 0o660);
        check("a-w", 0o750, false, 0o550);
        check("u+s,g+s,o-rwx", 0o645, false, 0o6640);
        check("go+rX", 0o600, false, 0o644);
        check("u+rw-x", 0o100, false, 0o600);
        check("=", 0o4755, false, 0);
        check("u=rw", 0o4755, false, 0o655);
        check("+t", 0o777, true, 0o1777);
        check("o+t", 0o777, true, 0o777);
        check("a-x+X", 0o755, false, 0o755);
        check("o=g", 0o2750, false, 0o2755);
    }

    #[test]
    fn refuses_what_is_no_mode() {
        for text in ["", "x", "u", "+q", "z+x", "u+x,", "u+x,,g+x", "755", "u+ug"] {
            assert!(Change::of(&Chmod::Symbolic(text.to_owned())).is_err(), "{text}");
        }
        assert!(Change::of(&Chmod::Octal(0o10000)).is_err());
        assert_eq!(Change::of(&Chmod::Octal(0o1777)).unwrap().apply(0, false), 0o1777);
    }
}
