//! What has to be shown from outside of a step: X01 to X23 (docs/security.md says which is where).

mod callers;
mod ends;
mod given;
mod kernels;
mod network;
mod single_id;
mod terminals;
mod trees;
mod users;
