//! Dockerfile text to syntax tree to instruction DAG. Pure: no files, no clock, no threads.
//!
//! ```
//! use kiln_parser::{source::Source, tree};
//!
//! let source = Source::new("Dockerfile", "FROM scratch\nCOPY a /\n".to_owned());
//! let (dockerfile, diagnostics) = tree::parse(&source);
//! assert!(diagnostics.is_empty());
//! assert_eq!(dockerfile.statements.len(), 2);
//! ```
//!
//! The stages of the work, each a module: [`lines`] joins physical lines, [`tree`] gives every
//! logical line its [`instruction`], [`lower`] turns stages into a [`graph`].

#![forbid(unsafe_code)]

pub mod config;
pub mod diagnostic;
pub mod directive;
pub mod duration;
pub mod expand;
pub mod git;
mod grammar;
pub mod graph;
pub mod ignore;
pub mod instruction;
mod json;
pub mod lines;
pub mod lint;
pub mod lower;
pub mod mount;
pub mod outline;
pub mod platform;
pub mod source;
pub mod suggest;
pub mod tree;
