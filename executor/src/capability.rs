//! The capabilities of a step: Docker's default 14, nothing inheritable, nothing ambient
//! (moby/profiles, `caps.DefaultCapabilities`; security.md S06).

use std::io;

use caps::{CapSet, Capability, CapsHashSet};

/// Docker's default set.
pub(crate) const ALLOWED: [Capability; 14] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FSETID,
    Capability::CAP_FOWNER,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_KILL,
    Capability::CAP_AUDIT_WRITE,
];

/// Takes everything else out of the bounding set; while the process is still privileged.
pub(crate) fn bound() -> io::Result<()> {
    let have = caps::read(None, CapSet::Bounding).map_err(io::Error::other)?;
    for capability in have.into_iter().filter(|capability| !ALLOWED.contains(capability)) {
        caps::drop(None, CapSet::Bounding, capability).map_err(io::Error::other)?;
    }
    Ok(())
}

/// What a step without namespaces has not: with the first it could leave its root, with the second make
/// the nodes of disks.
const NOT_IN_CHROOT: [Capability; 2] = [Capability::CAP_SYS_CHROOT, Capability::CAP_MKNOD];

/// The same for a step in a chroot, as far as a container that has few capabilities may: what is not
/// taken out cannot be had by programs either, as `no_new_privs` is set for root then.
pub(crate) fn bound_in_chroot() {
    for capability in caps::read(None, CapSet::Bounding).unwrap_or_default() {
        if !ALLOWED.contains(&capability) || NOT_IN_CHROOT.contains(&capability) {
            let _not_permitted = caps::drop(None, CapSet::Bounding, capability);
        }
    }
}

/// Sets the process's own sets: all 14 for root, none in effect for others (they get them back
/// through setuid programs, which the bounding set limits).
pub(crate) fn restrict(root: bool, chroot: bool) -> io::Result<()> {
    let bounding = caps::read(None, CapSet::Bounding).map_err(io::Error::other)?;
    let had = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let kept = |capability: &Capability| {
        let there = bounding.contains(capability);
        there && !(chroot && (NOT_IN_CHROOT.contains(capability) || !had.contains(capability)))
    };
    let allowed: CapsHashSet =
        if root { ALLOWED.into_iter().filter(kept).collect() } else { CapsHashSet::new() };
    caps::clear(None, CapSet::Ambient).map_err(io::Error::other)?;
    caps::clear(None, CapSet::Inheritable).map_err(io::Error::other)?;
    caps::set(None, CapSet::Effective, &allowed).map_err(io::Error::other)?;
    caps::set(None, CapSet::Permitted, &allowed).map_err(io::Error::other)
}
