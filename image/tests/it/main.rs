//! Archives, images and outputs over a real store, read by other programs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod builder;
mod corpus;
mod export;
mod hostile;
mod http;
mod network;
mod registry;
mod round_trip;
mod scripted;
