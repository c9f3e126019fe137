//! `--security-opt seccomp=FILE`: a profile in Docker's format (docs.docker.com, "Seccomp security
//! profiles for Docker"), read for a step with the default capabilities on this machine.

use std::path::Path;

use kiln_executor::seccomp::{Action, Condition, Filter, Op, Profile, Rule, has_capability};
use serde::{Deserialize, Deserializer};

use crate::failure::Failure;

/// The largest file that is read.
const BYTES_MAX: u64 = 4 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default, deserialize_with = "nullable")]
    architectures: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    arch_map: Vec<Architecture>,
    #[serde(default, deserialize_with = "nullable")]
    syscalls: Vec<Call>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Architecture {
    architecture: String,
    #[serde(default, deserialize_with = "nullable")]
    sub_architectures: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Call {
    #[serde(default, deserialize_with = "nullable")]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default, deserialize_with = "nullable")]
    args: Vec<Argument>,
    #[serde(default, deserialize_with = "nullable")]
    includes: Where,
    #[serde(default, deserialize_with = "nullable")]
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
#[serde(rename_all = "camelCase")]
struct Where {
    #[serde(default, deserialize_with = "nullable")]
    caps: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// Docker reads `null` as nothing, and its older profiles are full of it.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// How profiles name a processor.
struct Processor {
    /// In `includes` and `excludes` (Go's words).
    plain: &'static str,
    /// In `archMap`.
    own: &'static str,
    /// Its 32-bit ABI, there and in `architectures`.
    narrow: &'static str,
}

const HERE: Processor = if cfg!(target_arch = "aarch64") {
    Processor { plain: "arm64", own: "SCMP_ARCH_AARCH64", narrow: "SCMP_ARCH_ARM" }
} else {
    Processor { plain: "amd64", own: "SCMP_ARCH_X86_64", narrow: "SCMP_ARCH_X86" }
};

/// Reads and compiles a profile.
///
/// # Errors
/// A file that is not there, not a profile, or asks for what a filter cannot do.
pub(super) fn read(path: &Path) -> Result<Filter, Failure> {
    let shown = path.display();
    let unread = |error: &std::io::Error| {
        Failure::io("read the seccomp profile", &shown, error)
            .hint("--security-opt seccomp=FILE takes the path of a profile in Docker's format")
    };
    let bad = |why: &str| {
        Failure::usage(format_args!("`{shown}` is not a seccomp profile: {why}"))
            .hint("Docker's own is moby/profiles, seccomp/default.json")
    };
    let found = std::fs::metadata(path).map_err(|error| unread(&error))?;
    if !found.is_file() {
        return Err(bad("it is not a file"));
    }
    if found.len() > BYTES_MAX {
        return Err(bad("it is larger than 4 MiB"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unread(&error))?;
    let document: Document = serde_json::from_str(&text).map_err(|e| bad(&e.to_string()))?;
    let profile = profile(&document).map_err(|why| bad(&why))?;
    Filter::new(&profile).map_err(|e| bad(&e.to_string()))
}

fn profile(document: &Document) -> Result<Profile, String> {
    let default = action(&document.default_action, document.default_errno_ret)?;
    let mut rules = Vec::new();
    for call in &document.syscalls {
        if !applies(call)? {
            continue;
        }
        let action = action(&call.action, call.errno_ret)?;
        let names: Vec<String> = call.names.iter().chain(&call.name).cloned().collect();
        rules.extend(alternatives(&call.args)?.into_iter().map(|conditions| Rule {
            names: names.clone(),
            action,
            conditions,
        }));
    }
    Ok(Profile { default, rules, narrow: narrow(document)? })
}

/// Whether the profile is for programs of the 32-bit ABI as well; for one that names no ABI it is not.
fn narrow(document: &Document) -> Result<bool, String> {
    let Document { architectures, arch_map, .. } = document;
    if !architectures.is_empty() && !arch_map.is_empty() {
        return Err("it has both `architectures` and `archMap`; leave one out".to_owned());
    }
    let own = arch_map.iter().filter(|entry| entry.architecture == HERE.own);
    let mut served = architectures.iter().chain(own.flat_map(|entry| &entry.sub_architectures));
    Ok(served.any(|name| name == HERE.narrow))
}

/// The conditions of a rule: one set, all of which must hold, but where an argument is compared twice
/// every comparison counts by itself (runc's rule).
fn alternatives(arguments: &[Argument]) -> Result<Vec<Vec<Condition>>, String> {
    let conditions = arguments.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    let twice = conditions
        .iter()
        .enumerate()
        .any(|(at, one)| conditions[..at].iter().any(|other| other.argument == one.argument));
    Ok(if twice {
        conditions.into_iter().map(|condition| vec![condition]).collect()
    } else {
        vec![conditions]
    })
}

/// Whether a rule is for this step on this machine: all that it includes holds, and nothing that it
/// excludes (moby's rule).
fn applies(call: &Call) -> Result<bool, String> {
    let here = |arches: &[String]| arches.iter().any(|arch| arch == HERE.plain);
    let kernel = |place: &Where| place.min_kernel.as_deref().map(runs).transpose();
    let Call { includes, excludes, .. } = call;
    let included = (includes.arches.is_empty() || here(&includes.arches))
        && includes.caps.iter().all(|name| has_capability(name))
        && kernel(includes)? != Some(false);
    let excluded = here(&excludes.arches)
        || excludes.caps.iter().any(|name| has_capability(name))
        || kernel(excludes)? == Some(true);
    Ok(included && !excluded)
}

/// Whether this kernel is as new as `wanted`, such as `4.8`.
fn runs(wanted: &str) -> Result<bool, String> {
    let running = nix::sys::utsname::uname().map_err(|error| error.to_string())?;
    let running = version(&running.release().to_string_lossy());
    match wanted.split('.').map(str::parse::<u32>).collect::<Result<Vec<_>, _>>() {
        Ok(numbers) if numbers.len() == 2 => Ok(running >= (numbers[0], numbers[1])),
        _ => Err(format!("`minKernel` {wanted:?} is not two numbers, as in 4.8")),
    }
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    let mut next = || numbers.next().flatten().unwrap_or(0);
    (next(), next())
}

fn action(name: &str, errno: Option<u16>) -> Result<Action, String> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(errno.unwrap_or(1)),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_LOG" => Action::Log,
        other => {
            return Err(format!("action {other:?}: there is no such action, or Kiln lacks it"));
        }
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
        other => return Err(format!("op {other:?}: there is no such comparison")),
    };
    Ok(Condition { argument: argument.index, op, value })
}

#[cfg(test)]
mod tests {
    use kiln_executor::seccomp::{Action, Filter, Op, Profile};

    use super::{HERE, profile, version};

    fn parsed(text: &str) -> Result<Profile, String> {
        let document = serde_json::from_str(text).map_err(|error| error.to_string())?;
        profile(&document)
    }

    /// A profile with one rule for `read`, of which `rest` is a part.
    fn rule(rest: &str) -> Result<Profile, String> {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["read"],"action":"SCMP_ACT_ALLOW",REST}]}"#;
        parsed(&text.replace("REST", rest))
    }

    #[test]
    fn profiles_are_read() {
        let profile = parsed(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"archMap":[],"unknown":7,
            "syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ALLOW"},
            {"names":["clone"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]},
             "args":[{"index":0,"value":5,"valueTwo":1,"op":"SCMP_CMP_MASKED_EQ"}]},
            {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":null,"name":"chroot","action":"SCMP_ACT_LOG","args":null,"excludes":null,
             "includes":{"caps":["CAP_SYS_CHROOT"],"arches":null}}]}"#,
        )
        .expect("a profile");
        assert_eq!(profile.default, Action::Errno(38));
        let names: Vec<&str> =
            profile.rules.iter().flat_map(|rule| &rule.names).map(String::as_str).collect();
        assert_eq!(names, ["read", "write", "clone", "chroot"]);
        let condition = profile.rules[1].conditions[0];
        assert_eq!((condition.op, condition.value), (Op::Masked(5), 1));
        Filter::new(&profile).expect("compiled");
    }

    #[test]
    fn rules_are_for_places() {
        let applies = |rest: &str| !rule(rest).expect("a profile").rules.is_empty();
        let here = HERE.plain;
        assert!(applies(r#""includes":{"minKernel":"4.8"}"#));
        assert!(!applies(r#""includes":{"minKernel":"4000.1"}"#));
        assert!(applies(&format!(r#""includes":{{"arches":["s390","{here}"]}}"#)));
        assert!(!applies(r#""includes":{"arches":["s390"]}"#));
        assert!(!applies(r#""includes":{"caps":["CAP_KILL","CAP_SYS_ADMIN"]}"#));
        // One thing that is excluded is enough.
        assert!(!applies(r#""excludes":{"arches":["s390"],"minKernel":"4.8"}"#));
        assert!(!applies(r#""excludes":{"caps":["CAP_SYS_ADMIN","CAP_KILL"]}"#));
        assert!(!applies(&format!(r#""excludes":{{"arches":["{here}"],"caps":["CAP_BPF"]}}"#)));
        assert!(applies(r#""excludes":{"arches":["s390"],"caps":["CAP_BPF"]}"#));
        assert_eq!(version("6.18.44-x"), (6, 18));
    }

    #[test]
    fn an_argument_that_is_compared_twice_has_alternatives() {
        let compare = |indices: [u8; 2]| {
            let args = indices.map(|i| format!(r#"{{"index":{i},"value":1,"op":"SCMP_CMP_NE"}}"#));
            let profile = rule(&format!(r#""args":[{}]"#, args.join(","))).expect("a profile");
            profile.rules.iter().map(|rule| rule.conditions.len()).collect::<Vec<_>>()
        };
        assert_eq!(compare([0, 1]), [2]);
        assert_eq!(compare([1, 1]), [1, 1]);
    }

    #[test]
    fn the_narrow_abi_is_served_where_it_is_named() {
        let (own, narrow) = (HERE.own, HERE.narrow);
        let serves = |rest: String| {
            let text = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW"{rest}}}"#);
            parsed(&text).map(|profile| profile.narrow)
        };
        let map = |sub: &str| {
            format!(r#","archMap":[{{"architecture":"{own}","subArchitectures":{sub}}}]"#)
        };
        let list = format!(r#","architectures":["{own}","{narrow}"]"#);
        assert_eq!(serves(String::new()), Ok(false));
        assert_eq!(serves(format!(r#","architectures":["{own}"]"#)), Ok(false));
        assert_eq!(serves(list.clone()), Ok(true));
        assert_eq!(serves(map("null")), Ok(false));
        assert_eq!(serves(map(&format!(r#"["{narrow}"]"#))), Ok(true));
        assert!(serves(list + &map("null")).is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let why = |text: &str| parsed(text).expect_err("refused");
        assert!(why(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#).contains("SCMP_ACT_NOTIFY"));
        assert!(why("{}").contains("defaultAction"));
        for (rest, expect) in [
            (r#""args":[{"index":0,"value":1,"op":"SCMP_CMP_LIKE"}]"#, "SCMP_CMP_LIKE"),
            (r#""args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]"#, "argument 6"),
            (r#""includes":{"minKernel":"new"}"#, "minKernel"),
            (r#""errnoRet":70000"#, "70000"),
        ] {
            let why = rule(rest).expect_err("refused");
            assert!(why.contains(expect), "{expect:?} is not in: {why}");
        }
    }
}
