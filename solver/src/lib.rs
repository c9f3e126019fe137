//! Runs an instruction DAG: cache keys, look-ups, scheduling, events.

#![forbid(unsafe_code)]
