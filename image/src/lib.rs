//! OCI images: references, documents, layer archives, layouts, registries.

#![forbid(unsafe_code)]

pub mod archive;
pub mod cache;
pub mod config;
pub mod credential;
pub mod export;
mod flatten;
pub mod git;
pub mod history;
pub mod http;
pub mod import;
pub mod index;
pub mod json;
pub mod layout;
pub mod limits;
pub mod manifest;
pub mod media_type;
pub mod platform;
pub mod reference;
pub mod registry;
pub mod source;
pub mod tarball;
pub mod unpack;
