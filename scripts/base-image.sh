#!/usr/bin/env bash
# Makes a small Debian root file system with mmdebstrap: base-image.sh FILE.tar
# The bases of examples/ and of the tests; needs Debian's packages and no account anywhere.
# The caller's CA certificates go in, so that https works behind a company's proxy as well.
set -euo pipefail

out=$1
[ -s "$out" ] && exit 0
mkdir -p "$(dirname "$out")"
part="$out.part.$$"
trap 'rm -f "$part"' EXIT

bundle=/etc/ssl/certs/ca-certificates.crt
certificates=()
if [ -s "$bundle" ]; then
    certificates=(
        --customize-hook='mkdir -p "$1/etc/ssl/certs" "$1/usr/local/share/ca-certificates"'
        --customize-hook="copy-in $bundle /etc/ssl/certs"
    )
    # What the machine trusts beyond Debian's own list survives a later update-ca-certificates.
    for own in /usr/local/share/ca-certificates/*.crt; do
        [ -e "$own" ] && certificates+=(--customize-hook="copy-in $own /usr/local/share/ca-certificates")
    done
fi
mmdebstrap --variant=minbase --format=tar --quiet \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    "${certificates[@]}" bookworm "$part" "${KILN_DEBIAN_MIRROR:-http://deb.debian.org/debian}"
mv "$part" "$out"
