#!/usr/bin/env bash
# The sandbox's acceptance list (security.md 2.3), inside a RUN step: as root, as an ordinary user with
# ranges of ids, and with a single id. acceptance.sh KILN
set -euo pipefail
kiln=$(realpath "$1")
probes=$(realpath "$(dirname "$0")/../../shared/sandbox-acceptance")
user=kiln-test
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

mkdir -p "$work/root/bin" "$work/root/tmp" "$work/root/etc" "$work/context"
chmod 1777 "$work/root/tmp"
cp "$(command -v busybox)" "$work/root/bin/busybox"
for name in $("$work/root/bin/busybox" --list); do
    [ "$name" = busybox ] || ln -s busybox "$work/root/bin/$name"
done
gcc -static -O1 -w -o "$work/root/sysprobe" "$probes/sysprobe.c"
gcc -static -O1 -w -o "$work/root/chrootbreak" "$probes/chrootbreak.c"
cp "$probes/accept.sh" "$work/root/accept.sh"
touch "$work/root/.sandbox-marker"
tar -C "$work/root" -cf "$work/context/root.tar" .
printf 'FROM scratch\nADD root.tar /\nARG HOSTNS\nRUN ["/bin/sh", "/accept.sh"]\n' >"$work/context/Dockerfile"
cp "$kiln" "$work/kiln"
chmod -R a+rX "$work/context" "$work/kiln"

spaces() {
    for name in mnt pid net ipc uts cgroup user; do
        echo -n "$name=$(readlink "/proc/self/ns/$name" | tr -dc 0-9) "
    done
}

failures=0
accept() { # accept NAME FAILURES-ALLOWED COMMAND...
    local name=$1 allowed=$2 summary failed
    shift 2
    "$@" build --progress plain --no-cache --build-arg "HOSTNS=$(spaces)" "$work/context" >"$work/log" 2>&1 || {
        cat "$work/log"
        failures=$((failures + 1))
    }
    failed=$(grep -c ' FAIL S' "$work/log" || true)
    summary=$(grep -o 'SUMMARY pass=.*' "$work/log" | tail -n 1 || true)
    echo "acceptance, $name: ${summary:-no summary}"
    grep -o 'FAIL S.*' "$work/log" || true
    if [ -z "$summary" ] || [ "$failed" -gt "$allowed" ]; then failures=$((failures + 1)); fi
}

as_user() { # as_user STORE OPTIONS...
    local store=$1
    shift
    runuser -u "$user" -- env HOME="/home/$user" KILN_ROOT="/home/$user/$store" "$work/kiln" "$@"
}
ranges() { as_user acceptance --isolation ranges "$@"; }
single() { as_user acceptance-single --isolation single-id "$@"; }

accept root 0 env KILN_ROOT="$work/store" "$work/kiln"
accept "ranges" 0 ranges
accept "single id" 2 single
rm -rf "/home/$user/acceptance" "/home/$user/acceptance-single"
[ "$failures" = 0 ]
