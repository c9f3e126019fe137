//! Tests of the built `kiln` binary, as a user would run it. They make namespaces, so they need root.

mod agents;
mod allow;
mod build;
mod env;
mod examples;
mod house;
mod outputs;
mod processes;
mod registry;
