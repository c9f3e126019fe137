//! Runs an instruction DAG: keys, look-ups, scheduling, events. It decides; it never touches a
//! file, a process or the network itself: that is what [`ports::Ports`] is for.
//!
//! The life of a node:
//!
//! ```text
//! definition key ──hit──▶ Cached            (nothing below it is looked at)
//!       │miss
//!       ▼ inputs done
//! content key ────hit──▶ Cached
//!       │miss
//!       ▼ the key's lock (threads and processes), looked up again
//!      run ──▶ Ran, or Unchanged where it made the files it made before
//! ```

#![forbid(unsafe_code)]

pub mod event;
pub mod explain;
pub mod key;
pub mod outcome;
mod plan;
pub mod ports;
mod schedule;
pub mod snapshot;
mod state;
mod step;

pub use schedule::{SolveOptions, solve};
