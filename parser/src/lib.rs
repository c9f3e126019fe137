//! Dockerfile text to syntax tree to instruction DAG.

#![forbid(unsafe_code)]
