//! Regression tests for the attacks V01 to V33 (docs/security.md says which is where).

mod metadata;
mod mounts;
mod paths;
mod process;
mod sockets;
