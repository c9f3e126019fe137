#!/usr/bin/env bash
# Installs what `make demo` (setup.sh demo) or `make test` (setup.sh test) need from Debian's or
# Ubuntu's packages. Does nothing, and asks nobody, where all of it is there.
set -euo pipefail

demo_packages=(gcc make mmdebstrap debian-archive-keyring ca-certificates)
test_packages=("${demo_packages[@]}" python3 zstd git curl docker-registry apache2-utils skopeo umoci
    podman buildah runc busybox-static tar xz-utils bzip2 uidmap passt openssh-client)

case "${1:-test}" in
    demo) packages=("${demo_packages[@]}") ;;
    test) packages=("${test_packages[@]}") ;;
    bench) packages=("${demo_packages[@]}" buildah hyperfine skopeo) ;;
    *) echo "usage: setup.sh [demo|test|bench]" >&2; exit 2 ;;
esac

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
[ "${#missing[@]}" -eq 0 ] && exit 0

echo "setup: installing ${missing[*]}"
root=()
[ "$(id -u)" -eq 0 ] || root=(sudo)
export DEBIAN_FRONTEND=noninteractive
"${root[@]}" apt-get update -q
"${root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}"
