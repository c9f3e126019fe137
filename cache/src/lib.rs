//! The store on disk: blobs, layer trees, records, locks.

#![forbid(unsafe_code)]
