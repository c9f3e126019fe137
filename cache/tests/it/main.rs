//! The store from outside: layers, views, several processes, and processes that die.

mod bookkeeping;
mod layers;
mod processes;
mod scale;
