//! The store from outside: layers, views, several processes, and processes that die.

#![expect(clippy::unwrap_used, reason = "a test may panic, and what sets it up too")]

mod bookkeeping;
mod garbage;
mod layers;
mod processes;
mod scale;
