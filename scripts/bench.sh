#!/usr/bin/env bash
# Numbers beside Buildah's, in one run: bench.sh KILN BASE.tar
set -euo pipefail
kiln=$(realpath "$1") base=$(realpath "$2")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export KILN_ROOT="$work/kiln"
buildah=(buildah --root "$work/buildah" --runroot "$work/buildah-run" --storage-driver overlay)
"$kiln" import "$base" base >/dev/null
"$kiln" build -o "type=oci,dest=$work/base.oci" - <<<"FROM base" 2>/dev/null
"${buildah[@]}" pull -q "oci-archive:$work/base.oci" >/dev/null
image=$("${buildah[@]}" images -q | head -n 1)

steps() { # steps BASE: 30 RUN steps that do nothing
    echo "FROM $1"
    for n in $(seq 30); do echo "RUN true $n"; done
}
mkdir "$work/steps" "$work/files"
steps base >"$work/steps/Dockerfile"
steps "$image" >"$work/steps/Buildahfile"
printf 'FROM base\nCOPY . /files\n' >"$work/files/Dockerfile"
printf 'FROM %s\nCOPY . /files\n' "$image" >"$work/files/Buildahfile"
printf 'Dockerfile\nBuildahfile\n' >"$work/files/.dockerignore"
python3 - "$work/files" "${BENCH_FILES:-50000}" <<'PYTHON'
import os, random, sys
random.seed(1)
for n in range(int(sys.argv[2])):
    folder = f"{sys.argv[1]}/{n % 100}"
    os.makedirs(folder, exist_ok=True)
    words = b" ".join(b"%x" % random.getrandbits(24) for _ in range(1200))
    open(f"{folder}/{n}", "wb").write(words)
PYTHON

run_kiln="$kiln build --progress quiet"
run_buildah="${buildah[*]} build -q --isolation chroot --layers"
echo "== 30 RUN steps that do nothing, cold"
hyperfine --runs 3 --warmup 1 "$run_kiln --no-cache $work/steps" \
    "$run_buildah --no-cache -f $work/steps/Buildahfile $work/steps"
echo "== the same, all cached"
$run_kiln "$work/steps"
hyperfine --runs 20 --warmup 2 "$run_kiln $work/steps"
hyperfine --runs 5 --warmup 1 "$run_buildah -f $work/steps/Buildahfile $work/steps"
echo "== COPY of ${BENCH_FILES:-50000} files, cold, without export"
hyperfine --runs 2 "$run_kiln --no-cache $work/files" \
    "$run_buildah --no-cache -f $work/files/Buildahfile $work/files"
echo "== the same again, nothing changed"
hyperfine --runs 5 --warmup 1 "$run_kiln $work/files"
hyperfine --runs 2 "$run_buildah -f $work/files/Buildahfile $work/files"
