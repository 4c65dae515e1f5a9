#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh Debian or Ubuntu to text: installs what is missing, builds, and writes with the model
# of models/.   scripts/quickstart.sh [PROMPT]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

prompt=${1:-"The old man looked out over the sea, and"}
model=""
for config in models/*/config.json; do
  if [ -f "$config" ]; then
    model=$(dirname "$config")
    break
  fi
done
[ -n "$model" ] || die "expected a model folder in $PWD/models, found none; get a complete checkout," \
  "or train one with 'mamba-cpp train' (see docs/training.md)"

# shellcheck disable=SC2086
need_packages $BUILD_PACKAGES
[ -f build/release/build.ninja ] || echo "Building in build/release (a few minutes the first time)"
log=$(mktemp)
if ! cmake --preset release >"$log" 2>&1; then
  cat "$log" >&2
  die "configuring failed (see above)"
fi
rm -f "$log"
cmake --build --preset release --target mamba-cpp

program=$(find build/release -maxdepth 1 -type f -name mamba-cpp -perm -u+x | head -n 1)
[ -n "$program" ] || die "the build left no program mamba-cpp in build/release"
echo
echo "$program generate -m $model -p \"$prompt\" -n 300 --temp 0.7 --top-p 0.9 --seed 1 --echo"
echo
"$program" generate -m "$model" -p "$prompt" -n 300 --temp 0.7 --top-p 0.9 --seed 1 --echo
echo
