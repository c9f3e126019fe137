//! The door to the kernel: calls that need `unsafe`, each behind a small safe function.

#![expect(unsafe_code, reason = "the only place of the project that may have it")]

pub(crate) mod mount;
pub(crate) mod network;
pub(crate) mod process;
pub(crate) mod seccomp;
