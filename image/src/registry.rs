//! A client for the OCI distribution specification: pull and push, mirrors, authentication.
//!
//! [`hosts`] says where a registry is and to whom credentials may go, [`auth`] reads challenges,
//! [`token`] answers them, [`transport`] speaks HTTP with proxies and timeouts, [`retry`] waits,
//! [`client`] puts them together, [`upload`] pushes. Every answer is read against a limit, every
//! document and blob against its digest; credentials never leave their origin.

pub mod auth;
pub mod client;
pub mod hosts;
pub mod retry;
pub mod token;
pub mod transport;
pub mod upload;

use std::io;

use kiln_cache::{Digest, StoreError};

use crate::credential::CredentialError;
use crate::json::DocumentError;

pub use client::{BlobReader, Document, RegistryClient, RegistrySettings};
pub use hosts::HostSettings;
pub use upload::{Bring, PushRequest, push};

/// Why a registry did not give or take something.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Credentials.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// No connection, or it broke.
    #[error("cannot {operation} `{url}`: {reason}")]
    Connection {
        /// What was being done.
        operation: &'static str,
        /// The address, without its query.
        url: String,
        /// Why.
        reason: String,
    },
    /// The registry says no.
    #[error("cannot {operation} `{url}`: the registry answered {status}{message}")]
    Status {
        /// What was being done.
        operation: &'static str,
        /// The address, without its query.
        url: String,
        /// HTTP's status.
        status: u16,
        /// What the registry says, beginning with a colon; empty if nothing.
        message: String,
    },
    /// It is not there.
    #[error("`{what}` is not in the registry (`{url}`)")]
    NotFound {
        /// The reference or blob.
        what: String,
        /// The address that was asked.
        url: String,
    },
    /// Credentials are missing or were refused.
    #[error("not allowed to {operation} `{url}`: {reason}")]
    Unauthorized {
        /// What was being done.
        operation: &'static str,
        /// The address, without its query.
        url: String,
        /// Why.
        reason: String,
    },
    /// An answer that breaks the protocol or a limit.
    #[error("`{url}` answered wrongly: {reason}")]
    Answer {
        /// The address, without its query.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A document is malformed.
    #[error("`{what}`: {source}")]
    Document {
        /// Which.
        what: String,
        /// What is wrong.
        source: DocumentError,
    },
    /// A blob that is to be pushed is not here, and the registry has it not either.
    #[error("blob `{0}` is not in the store")]
    MissingBlob(Digest),
    /// Options that contradict each other.
    #[error("{0}")]
    Conflict(String),
    /// No other machine may be asked.
    #[error("`{url}` is not in the store, and nothing is fetched offline")]
    Offline {
        /// The address, without its query.
        url: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Reading a blob failed.
    #[error("cannot read blob `{digest}`: {source}")]
    Blob {
        /// Which.
        digest: Digest,
        /// Why.
        source: io::Error,
    },
}

impl RegistryError {
    /// Whether it was the network or the other side, so that another endpoint may serve.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}
