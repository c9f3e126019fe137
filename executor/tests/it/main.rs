//! Steps as root: RUN on a small root file system, COPY, ADD and WORKDIR on small trees.

mod copy;
mod run;
