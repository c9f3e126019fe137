//! One build step in isolation: namespaces, mounts, RUN, COPY and ADD.
