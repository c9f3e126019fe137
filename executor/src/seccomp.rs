//! System calls that a step may make: a profile, compiled for every ABI that the processor runs, because
//! each has numbers of its own and a filter that knows only one is no filter (security.md, S29, S30).

mod abi;
mod compile;
mod list;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::OnceLock;

use crate::capability::ALLOWED;

/// What the kernel answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The call is made.
    Allow,
    /// It fails with this error number.
    Errno(u16),
    /// The process gets SIGSYS.
    Trap,
    /// The thread dies.
    KillThread,
    /// The process dies.
    KillProcess,
    /// The call is made, and told to the audit log.
    Log,
}

/// How an argument is compared, as 64-bit numbers without sign (seccomp_rule_add(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `argument == value`.
    Equal,
    /// `argument != value`.
    NotEqual,
    /// `argument < value`.
    Less,
    /// `argument <= value`.
    LessOrEqual,
    /// `argument > value`.
    Greater,
    /// `argument >= value`.
    GreaterOrEqual,
    /// `argument & this == value`.
    Masked(u64),
}

/// One comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub argument: u8,
    /// How.
    pub op: Op,
    /// With what.
    pub value: u64,
}

/// What happens to some calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The calls, by the names of syscalls(2).
    pub names: Vec<String>,
    /// What happens.
    pub action: Action,
    /// When: all of them; always where there are none. Rules with conditions go first.
    pub conditions: Vec<Condition>,
}

/// A profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// For calls without a rule. Those with numbers behind the last one that has a rule fail with ENOSYS,
    /// unless they are allowed: C libraries then do without them (runc's rule).
    pub default: Action,
    /// For the others.
    pub rules: Vec<Rule>,
    /// Whether programs of the processor's 32-bit ABI are served; every call of theirs fails otherwise.
    pub narrow: bool,
}

/// Whether a step has a capability, by its name in capabilities(7); profiles have rules that ask.
pub fn has_capability(name: &str) -> bool {
    name.parse().is_ok_and(|capability| ALLOWED.contains(&capability))
}

/// A compiled profile.
#[derive(Debug, PartialEq, Eq)]
pub struct Filter(Vec<libc::sock_filter>);

impl Filter {
    /// Compiles a profile for this machine.
    ///
    /// # Errors
    /// It has more rules than a filter can hold.
    pub fn new(profile: &Profile) -> io::Result<Self> {
        let served = if profile.narrow { abi::HERE } else { &abi::HERE[..1] };
        compile::program(profile, served).map(Self)
    }

    /// Kiln's own, compiled once a process. `multiplexed_sockets` is for images of linux/386.
    pub(crate) fn standard(multiplexed_sockets: bool) -> io::Result<&'static Self> {
        static COMPILED: [OnceLock<Result<Filter, String>>; 2] = [const { OnceLock::new() }; 2];
        let compiled = COMPILED[usize::from(multiplexed_sockets)].get_or_init(|| {
            Self::new(&list::default(multiplexed_sockets)).map_err(|error| error.to_string())
        });
        compiled.as_ref().map_err(|why| io::Error::other(why.clone()))
    }

    /// Puts the filter on this process and its children, for ever. Needs CAP_SYS_ADMIN: programs with
    /// the setuid bit must keep working, so there is no `no_new_privs`.
    pub(crate) fn load(&self) -> io::Result<()> {
        crate::sys::seccomp::load(&self.0)
    }
}
