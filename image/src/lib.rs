//! OCI images: references, documents, layer archives, layouts, registries.

#![forbid(unsafe_code)]
