//! Steps as root: RUN on a small root file system and its system calls, COPY, ADD and WORKDIR on small trees.

mod copy;
mod run;
mod seccomp;
