#!/usr/bin/env bash
# What `make demo` shows: a Debian base made here, an example built on it, the result, the cache.
set -euo pipefail
kiln=$1 base=$2
export KILN_ROOT=${KILN_ROOT:-${TMPDIR:-/tmp}/kiln-demo}
here=$(cd "$(dirname "$0")/.." && pwd)

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }

say "1. A base image from a root file system (no registry, no account)"
run "$kiln" import "$base" debian:bookworm

say "2. Build examples/c-service: a compiler in one stage, a small image from the other"
run "$kiln" build -t c-service:demo -o "type=oci,dest=$KILN_ROOT/c-service.tar" "$here/examples/c-service"

say "3. The same again: everything comes from the cache"
time run "$kiln" build -t c-service:demo "$here/examples/c-service"

say "4. What was made"
run "$kiln" images
run "$kiln" history c-service:demo
ls -lh "$KILN_ROOT/c-service.tar"
echo
echo "The store is $KILN_ROOT; load the archive with: podman load -i $KILN_ROOT/c-service.tar"
