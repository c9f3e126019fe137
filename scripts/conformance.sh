#!/usr/bin/env bash
# Runs the conformance suite: conformance.sh SUITE KILN [USER], as another user where one is named.
# Fails where a case fails that docs/compatibility.md does not name.
set -euo pipefail
suite=$1 kiln=$2 user=${3:-}
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The cases count on modes as umask 022 makes them; the suite may be mounted without write bits.
cp -r "$suite" "$work/suite"
chmod -R u+w "$work/suite"
as=()
if [ -n "$user" ]; then
    cp "$kiln" "$work/kiln"
    kiln=$work/kiln
    mkdir "$work/home"
    chown -R "$user" "$work"
    as=(runuser -u "$user" -- env HOME="$work/home" TMPDIR="$work/home")
fi
status=0
KILN_ROOT="$work/store" "${as[@]}" python3 "$work/suite/conformance.py" --builder "$kiln" -j "$(nproc)" \
    >"$work/log" 2>&1 || status=$?
tail -n 1 "$work/log" | sed "s/^/conformance${user:+ as $user}: /"
[ "$status" -le 1 ] || { cat "$work/log"; exit "$status"; }
unknown=0
while read -r case; do
    if ! grep -q "^| $case |" "$here/docs/compatibility.md"; then
        grep -A 8 "^FAIL $case\$" "$work/log"
        unknown=1
    fi
done < <(sed -n 's/^FAIL //p' "$work/log")
[ "$unknown" -eq 0 ] || { echo "conformance: cases above are not in docs/compatibility.md"; exit 1; }
