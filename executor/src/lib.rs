//! One build step in isolation: RUN in its namespaces, COPY and ADD as file operations on trees.
//!
//! A RUN is a [`spec::RunSpec`] (plain data) that [`run::run`] carries out: it forks a process that
//! makes the namespaces, that one forks the step's pid 1 (`init`), which mounts the root file
//! system and forks the command. When `run` returns, everything of the step is gone: processes,
//! mounts, descriptors. All `unsafe` of the project is below `sys`.

pub mod cancel;
mod capability;
pub mod cgroup;
pub mod check;
pub mod chmod;
mod chroot;
mod copied;
pub mod copy;
mod devices;
mod etc;
mod fused;
mod ids;
mod init;
mod init_program;
mod insecure;
pub mod mkdir;
mod mounts;
pub mod net;
mod pem;
mod place;
mod program;
mod rootfs;
pub mod rootless;
pub mod run;
pub mod seccomp;
pub mod spec;
mod stdio;
mod sys;
mod terminal;
pub mod trust;
pub mod user;
