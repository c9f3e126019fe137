#!/usr/bin/env bash
# Installs what `make demo` (setup.sh demo) or `make test` (setup.sh test) need from Debian's or
# Ubuntu's packages. Does nothing, and asks nobody, where all of it is there.
set -euo pipefail

demo_packages=(gcc make mmdebstrap debian-archive-keyring ca-certificates)
test_packages=("${demo_packages[@]}" python3 openssl zstd git curl docker-registry apache2-utils skopeo umoci
    podman buildah runc busybox-static tar xz-utils bzip2 uidmap passt fuse-overlayfs iproute2 nftables openssh-client dropbear-bin passwd libc6-dev bsdutils strace
    mount e2fsprogs util-linux qemu-user-static faketime)

case "${1:-test}" in
    demo) packages=("${demo_packages[@]}") ;;
    test) packages=("${test_packages[@]}") ;;
    bench) packages=("${demo_packages[@]}" buildah hyperfine skopeo) ;;
    *) echo "usage: setup.sh [demo|test|bench]" >&2; exit 2 ;;
esac

root=()
[ "$(id -u)" -eq 0 ] || root=(sudo)

# An ordinary user with ranges of ids, for the tests that build without root; and /dev/net/tun and
# /dev/fuse with the modes that udev gives them, for this user's steps and those of root, which have other ids.
test_user() {
    id kiln-test >/dev/null 2>&1 || "${root[@]}" useradd --create-home kiln-test
    grep -q '^kiln-test:' /etc/subuid || "${root[@]}" usermod --add-subuids 700000-765535 kiln-test
    grep -q '^kiln-test:' /etc/subgid || "${root[@]}" usermod --add-subgids 700000-765535 kiln-test
    if [ ! -e /dev/net/tun ]; then
        "${root[@]}" mkdir -p /dev/net
        "${root[@]}" mknod /dev/net/tun c 10 200 || true
    fi
    [ ! -c /dev/net/tun ] || "${root[@]}" chmod 0666 /dev/net/tun
    [ -e /dev/fuse ] || "${root[@]}" mknod /dev/fuse c 10 229 || true
    [ ! -c /dev/fuse ] || "${root[@]}" chmod 0666 /dev/fuse
}

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ "${#missing[@]}" -eq 0 ]; then
    [ "${1:-test}" != test ] || test_user
    exit 0
fi

echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${root[@]}" apt-get update -q
"${root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}"
[ "${1:-test}" != test ] || test_user
