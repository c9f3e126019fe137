//! Tests of the built `kiln` binary, as a user would run it. They make namespaces, so they need root.

mod agents;
mod allow;
mod attack;
mod attacks;
mod build;
mod ca_certs;
mod call;
mod devices;
mod env;
mod examples;
mod history;
mod hostile;
mod house;
mod language;
mod limits;
mod messages;
mod offline;
mod outputs;
mod probe;
mod processes;
mod registry;
mod remote;
mod rootless;
mod run;
mod sandbox;
mod sentinel;
