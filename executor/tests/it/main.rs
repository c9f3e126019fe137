//! RUN as root on a small root file system: what a step sees, what it leaves, how it ends.

mod run;
