#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the tests of devices and kernels over the NVIDIA GPUs of this machine beside the CPU. The last line counts
# them.
#
#     scripts/test_gpu.sh [BUILD_DIR]    without a folder it builds preset ci into build/ci
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

if [ $# -gt 1 ]; then
  die "expected at most one build folder, got $#"
fi
build=${1:-}
if [ -z "$build" ]; then
  # shellcheck disable=SC2086
  need_packages $BUILD_PACKAGES libgtest-dev python3
  cmake --preset ci -DMAMBA_CUDA=ON
  cmake --build --preset ci
  build=build/ci
fi
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# One process a test, all at once: they wait for the GPU most of the time.
names=()
for program in "$build"/tests/device/test_* "$build"/tests/kernels/test_* \
  "$build"/tests/model/test_{bf16_activations,device_memory,explain,golden,gpu_model,state_dtype,weight_types}; do
  if [ ! -x "$program" ] || [ ! -f "$program" ]; then
    continue
  fi
  name=$(basename "$program")
  names+=("$name")
  (OMP_WAIT_POLICY=passive timeout 600 "$program" >"$logs/$name" 2>&1 || echo "exit $?" >>"$logs/$name") &
done
wait
[ ${#names[@]} != 0 ] || die "no test programs in $build/tests/kernels; build first"

passed=0 failed=0 without=0
for name in "${names[@]}"; do
  log=$logs/$name
  ok=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$log" | head -n 1)
  bad=$(grep -c '^\[  FAILED  \] [A-Za-z0-9]*\.[A-Za-z0-9]* (' "$log" || true)
  if grep -q '^exit ' "$log" && [ "$bad" = 0 ]; then
    bad=1 # it crashed or ran too long
  fi
  # Tests of the instruction sets of CPUs name no backends.
  if grep -q '^backends:' "$log" && ! grep -q '^backends:.* cuda:0' "$log"; then
    without=$((without + 1))
  fi
  if [ "$bad" != 0 ]; then
    echo "== $name"
    grep -v '^backends:\|^\[ RUN  \|^\[       OK' "$log" | tail -n 60
  fi
  passed=$((passed + ${ok:-0}))
  failed=$((failed + bad))
done
if [ "$without" != 0 ]; then
  echo "$without of ${#names[@]} test programs saw no GPU"
  failed=$((failed + without))
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" != 0 ]
