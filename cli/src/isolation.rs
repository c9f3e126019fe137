//! `--isolation`: what the builder and its steps are for the machine.

use clap::ValueEnum;
use kiln_executor::rootless::{self, Entered, Tier};

use crate::failure::Failure;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Isolation {
    /// The best that is possible here.
    #[value(alias = "default")]
    Auto,
    /// The machine's root, steps in user namespaces with ids of their own.
    Root,
    /// A user namespace with the ranges of /etc/subuid.
    Ranges,
    /// A user namespace with the user's id alone.
    SingleId,
    /// Neither namespaces nor mounts: steps in a chroot, for containers that forbid both.
    Chroot,
    /// No namespaces: builds without RUN.
    #[value(name = "none")]
    Bare,
}

/// Moves the process there. It must be the first that a command does: it may have one thread only.
///
/// # Errors
/// A tier that was named is not possible here.
pub(crate) fn enter(asked: Isolation) -> Result<Entered, Failure> {
    let wanted = match asked {
        Isolation::Auto => None,
        Isolation::Root => Some(Tier::Root),
        Isolation::Ranges => Some(Tier::Ranges),
        Isolation::SingleId => Some(Tier::SingleId),
        Isolation::Chroot => Some(Tier::Chroot),
        Isolation::Bare => Some(Tier::Bare),
    };
    let entered = rootless::enter(wanted.unwrap_or(Tier::Root))
        .map_err(|error| Failure::io("make", "a user namespace", &error))?;
    match wanted {
        Some(wanted) if entered.tier != wanted => Err(refused(wanted, &entered)),
        _ => Ok(entered),
    }
}

fn refused(wanted: Tier, entered: &Entered) -> Failure {
    let message =
        format!("--isolation={wanted} is not possible here: it would be {}", entered.tier);
    let failure = Failure::environment(message);
    match entered.remarks.first() {
        Some(remark) => failure.hint(remark.as_str()),
        None => failure.hint("run it as root, or leave the option out"),
    }
}

/// The line that a build prints where its steps have less than is usual.
pub(crate) fn remark(entered: &Entered) -> Option<String> {
    let what = match entered.tier {
        Tier::Root | Tier::Ranges => return None,
        Tier::SingleId => {
            "steps have one user id: files cannot belong to other users, and programs that change the user fail"
        }
        Tier::Chroot => {
            "steps are in a chroot alone: they share this machine's network and processes, have no /proc and /sys, and copies in place of mounts"
        }
        Tier::Bare => "RUN does not work here",
    };
    let why = entered.remarks.first().map_or(String::new(), |remark| format!(" ({remark})"));
    Some(format!("note: {what}{why}"))
}

/// Why no step can run, where that is so.
pub(crate) fn forbidden(entered: &Entered) -> Option<String> {
    let why = "leave out --isolation=none, or run kiln where namespaces can be made";
    let first = || entered.remarks.first().cloned();
    (entered.tier == Tier::Bare).then(|| first().unwrap_or_else(|| why.to_owned()))
}
