#!/usr/bin/env bash
# All tests, fast ones first; called by `make test`, which has built the binary and the base image.
# Prints the totals of the test programs and of the conformance suite at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

make lint
RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" "$cargo" doc --locked --workspace --no-deps --document-private-items --quiet

"$cargo" test --locked --workspace --no-fail-fast 2>&1 | tee "$log"

passed=$(awk '/^test result:/ {n += $4} END {print n + 0}' "$log")
failed=$(awk '/^test result:/ {n += $6} END {print n + 0}' "$log")
ignored=$(awk '/^test result:/ {n += $8} END {print n + 0}' "$log")
echo "unit and integration tests: $passed passed, $failed failed, $ignored ignored"
[ "$ignored" -eq 0 ] || { echo "a test that does not run is not a test" >&2; exit 1; }

suite=../shared/conformance
if [ -f "$suite/conformance.py" ]; then
    scripts/conformance.sh "$suite" "$KILN_TEST_BINARY"
    scripts/conformance.sh "$suite" "$KILN_TEST_BINARY" kiln-test
else
    echo "conformance: $suite is not there, only the tests above ran"
fi
if [ -f ../shared/sandbox-acceptance/accept.sh ]; then
    scripts/acceptance.sh "$KILN_TEST_BINARY"
else
    echo "acceptance: ../shared/sandbox-acceptance is not there"
fi
echo "$passed passed, $failed failed"
