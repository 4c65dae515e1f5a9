#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what the tests need, builds everything with warnings as errors and runs all tests. The last
# line counts them. MAMBA_TEST_DATA, where set, names a folder of larger texts that some tests use.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

# shellcheck disable=SC2086
need_packages $BUILD_PACKAGES libgtest-dev python3 groff zsh fish
cmake --preset ci
cmake --build --preset ci
results=$PWD/build/ci/results.xml
rm -f "$results"
status=0
ctest --preset ci --output-junit "$results" || status=$?
[ -f "$results" ] || die "ctest left no results"

# The first line that has the attribute is <testsuite>.
count() { sed -n "s/.*[[:space:]]$1=\"\([0-9]*\)\".*/\1/p" "$results" | head -n 1; }
failed=$(count failures)
skipped=$(($(count skipped) + $(count disabled)))
passed=$(($(count tests) - failed - skipped))
if [ "$status" = 0 ] && [ "$passed" = 0 ]; then
  status=1
fi
if [ "$skipped" = 0 ]; then
  echo "$passed passed, $failed failed"
else
  echo "$passed passed, $failed failed, $skipped skipped"
fi
exit "$status"
