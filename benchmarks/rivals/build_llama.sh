#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds llama.cpp, the rival of benchmarks/compare_cpu.py, from the source archive of the PyPI
# package llama-cpp-python, for the CPU that runs it.
#
#   benchmarks/rivals/build_llama.sh [FOLDER]
#
# FOLDER defaults to ${XDG_CACHE_HOME:-~/.cache}/mamba-cpp/rivals. It gets llama/bin (llama-bench,
# llama-batched-bench, llama-quantize, llama-completion, the libraries), llama/python (the module
# llama_cpp, for PYTHONPATH) and README. A folder that has them already is left as it is.
#   VERSION=0.3.36     version of llama-cpp-python
#   JOBS=N             compile jobs (default: the CPUs)
#   PYTHON=python3     the python whose pip fetches the archive
#   AMX=1              leave llama.cpp's AMX kernels in (off by default where the CPU has AMX: they
#                      stop with an illegal instruction on some virtual machines)
set -euo pipefail

version=${VERSION:-0.3.36}
jobs=${JOBS:-$(nproc)}
python=${PYTHON:-python3}
root=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/mamba-cpp/rivals}
prefix=$root/llama

if [ -x "$prefix/bin/llama-completion" ] && [ "$(cat "$prefix/version" 2>/dev/null)" = "$version" ]; then
  echo "llama.cpp of llama-cpp-python $version is there: $prefix"
  exit 0
fi

mkdir -p "$root/source"
if [ ! -d "$root/source/llama_cpp_python-$version" ]; then
  "$python" -m pip download --quiet --no-deps --no-binary :all: --dest "$root/source" \
    "llama-cpp-python==$version"
  tar -xzf "$root/source/llama_cpp_python-$version.tar.gz" -C "$root/source"
fi
package=$root/source/llama_cpp_python-$version
source=$package/vendor/llama.cpp
build=$root/build-$version

generator=()
command -v ninja >/dev/null && generator=(-G Ninja)
isa=(-DGGML_NATIVE=ON)
if [ "${AMX:-0}" != 1 ] && grep -qw amx_tile /proc/cpuinfo; then
  isa=(-DGGML_NATIVE=OFF)
  for feature in AVX:avx AVX2:avx2 FMA:fma F16C:f16c BMI2:bmi2 AVX_VNNI:avx_vnni AVX512:avx512f \
    AVX512_VBMI:avx512_vbmi AVX512_VNNI:avx512_vnni AVX512_BF16:avx512_bf16; do
    if grep -qw "${feature#*:}" /proc/cpuinfo; then isa+=("-DGGML_${feature%%:*}=ON"); fi
  done
fi
cmake -S "$source" -B "$build" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release "${isa[@]}" \
  -DBUILD_SHARED_LIBS=ON -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_UI=OFF
cmake --build "$build" --parallel "$jobs" \
  --target llama-bench llama-batched-bench llama-quantize llama-completion

rm -rf "$prefix"
mkdir -p "$prefix/python"
cp -a "$build/bin" "$prefix/bin"
cp -a "$package/llama_cpp" "$prefix/python/"
echo "$version" >"$prefix/version"
cat >"$root/README" <<END
llama.cpp of llama-cpp-python $version, built for this CPU: ${isa[*]}
programs   $prefix/bin: llama-bench llama-batched-bench llama-quantize llama-completion
python     PYTHONPATH=$prefix/python LLAMA_CPP_LIB_PATH=$prefix/bin python -c 'import llama_cpp'
           (needs the packages numpy, typing_extensions, diskcache, jinja2)
converter  $source/convert_hf_to_gguf.py (needs torch, transformers, gguf)
END
cat "$root/README"
