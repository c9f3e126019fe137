//! The store from outside: layers, views, several processes, and processes that die.

mod layers;
mod scale;
