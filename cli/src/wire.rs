//! One adapter a port: what the solver asks for, done by the other crates. These files rename and
//! connect; decisions are made in the crates.

pub(crate) mod agent;
mod ca_certs;
pub(crate) mod cache;
pub(crate) mod config;
pub(crate) mod copy;
pub(crate) mod debug;
pub(crate) mod devices;
pub(crate) mod export;
mod foreign;
pub(crate) mod images;
pub(crate) mod kept;
#[cfg(test)]
mod metamorphic;
pub(crate) mod ports;
mod pressure;
pub(crate) mod registry;
pub(crate) mod remote;
pub(crate) mod room;
pub(crate) mod run;
pub(crate) mod sandbox;
mod seccomp;
pub(crate) mod take_out;
