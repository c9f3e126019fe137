//! `--security-opt seccomp=FILE`: a profile in Docker's format (docs.docker.com, "Seccomp security
//! profiles for Docker"), read for a step with the default capabilities on this machine.

use std::path::Path;

use kiln_executor::seccomp::{Action, Condition, Filter, Op, Profile, Rule};
use serde::Deserialize;

use crate::failure::Failure;

/// The largest file that is read.
const BYTES_MAX: u64 = 4 << 20;

/// The names of a step's capabilities, as profiles spell them.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    syscalls: Vec<Call>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Call {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u16>,
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Where,
    #[serde(default)]
    excludes: Where,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Where {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// Reads and compiles a profile.
///
/// # Errors
/// A file that is not there, not a profile, or asks for what a filter cannot do.
pub(super) fn read(path: &Path) -> Result<Filter, Failure> {
    let shown = path.display();
    let found = std::fs::metadata(path).map_err(|e| Failure::io("read", &shown, &e))?;
    if !found.is_file() || found.len() > BYTES_MAX {
        return Err(Failure::usage(format_args!("`{shown}` is no seccomp profile")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| Failure::io("read", &shown, &e))?;
    let bad = |why: &str| {
        Failure::usage(format_args!("`{shown}` is not a seccomp profile: {why}"))
            .hint("Docker's own is moby/profiles, seccomp/default.json")
    };
    let document: Document = serde_json::from_str(&text).map_err(|e| bad(&e.to_string()))?;
    let profile = profile(&document).map_err(|why| bad(&why))?;
    Filter::new(&profile).map_err(|e| bad(&e.to_string()))
}

fn profile(document: &Document) -> Result<Profile, String> {
    let default = action(&document.default_action, document.default_errno_ret)?;
    let mut rules = Vec::new();
    for call in &document.syscalls {
        if !applies(&call.includes, true) || applies(&call.excludes, false) {
            continue;
        }
        let conditions = call.args.iter().flatten().map(condition).collect::<Result<_, _>>()?;
        rules.push(Rule {
            names: call.names.iter().chain(&call.name).cloned().collect(),
            action: action(&call.action, call.errno_ret)?,
            conditions,
        });
    }
    Ok(Profile { default, newer: default, rules })
}

/// Whether all that is named holds here; of what names nothing, `nothing`.
fn applies(place: &Where, nothing: bool) -> bool {
    if place.caps.is_empty() && place.arches.is_empty() && place.min_kernel.is_none() {
        return nothing;
    }
    let own: &[&str] = match std::env::consts::ARCH {
        "x86_64" => &["amd64", "x86", "x32"],
        "aarch64" => &["arm64", "arm"],
        _ => &[],
    };
    // An exclusion takes effect by any of its capabilities, an inclusion needs all (moby's rule).
    let has = |name: &String| CAPABILITIES.contains(&name.as_str());
    let caps = place.caps.is_empty()
        || if nothing { place.caps.iter().all(has) } else { place.caps.iter().any(has) };
    let arches =
        place.arches.is_empty() || place.arches.iter().any(|arch| own.contains(&arch.as_str()));
    let kernel = place.min_kernel.as_ref().is_none_or(|text| newer_than(text));
    if nothing || place.caps.is_empty() || place.arches.is_empty() {
        return caps && arches && kernel;
    }
    caps || arches
}

fn newer_than(wanted: &str) -> bool {
    let numbers = |text: &str| {
        let mut parts = text.split(|c: char| !c.is_ascii_digit()).map(|p| p.parse::<u32>().ok());
        let mut next = || parts.next().flatten().unwrap_or(0);
        (next(), next())
    };
    let running = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
    running.is_ok_and(|running| numbers(&running) >= numbers(wanted))
}

fn action(name: &str, errno: Option<u16>) -> Result<Action, String> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(errno.unwrap_or(1)),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_LOG" => Action::Log,
        other => return Err(format!("the action {other:?} is unknown or not supported")),
    })
}

fn condition(argument: &Argument) -> Result<Condition, String> {
    if argument.index > 5 {
        return Err(format!("there is no argument {}", argument.index));
    }
    let (op, value) = match argument.op.as_str() {
        "SCMP_CMP_EQ" => (Op::Equal, argument.value),
        "SCMP_CMP_NE" => (Op::NotEqual, argument.value),
        "SCMP_CMP_LT" => (Op::Less, argument.value),
        "SCMP_CMP_LE" => (Op::LessOrEqual, argument.value),
        "SCMP_CMP_GT" => (Op::Greater, argument.value),
        "SCMP_CMP_GE" => (Op::GreaterOrEqual, argument.value),
        "SCMP_CMP_MASKED_EQ" => (Op::Masked(argument.value), argument.value_two),
        other => return Err(format!("the comparison {other:?} is unknown")),
    };
    Ok(Condition { argument: argument.index, op, value })
}

#[cfg(test)]
mod tests {
    use kiln_executor::seccomp::{Action, Op};

    use super::{Document, profile};

    #[test]
    fn profiles_are_read() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"archMap":[],
            "syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ALLOW"},
            {"names":["clone"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]},
             "args":[{"index":0,"value":5,"valueTwo":1,"op":"SCMP_CMP_MASKED_EQ"}]},
            {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["chroot"],"action":"SCMP_ACT_LOG","includes":{"caps":["CAP_SYS_CHROOT"]}}]}"#;
        let document: Document = serde_json::from_str(text).expect("JSON");
        let profile = profile(&document).expect("a profile");
        assert_eq!(profile.default, Action::Errno(38));
        let names: Vec<&str> =
            profile.rules.iter().flat_map(|rule| &rule.names).map(String::as_str).collect();
        assert_eq!(names, ["read", "write", "clone", "chroot"]);
        let condition = profile.rules[1].conditions[0];
        assert_eq!((condition.op, condition.value), (Op::Masked(5), 1));
        let unknown = r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#;
        let document: Document = serde_json::from_str(unknown).expect("JSON");
        assert!(super::profile(&document).is_err());
    }
}
