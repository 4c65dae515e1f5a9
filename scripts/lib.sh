# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Shared by the scripts of this folder: errors, and Debian packages installed only where missing.

# Used by the scripts that source this file.
# shellcheck disable=SC2034
readonly BUILD_PACKAGES="g++ cmake ninja-build libdnnl-dev nlohmann-json3-dev libcli11-dev libfmt-dev \
libpcre2-dev libutf8proc-dev libedit-dev zlib1g-dev"

die() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# The names among the arguments that are not installed, on one line.
missing_packages() {
  local package missing=""
  for package in "$@"; do
    if [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
      missing="$missing $package"
    fi
  done
  echo "${missing# }"
}

# Makes sure that the Debian packages are there; says and does nothing when they are.
need_packages() {
  local missing root="" log
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    die "this is no Debian or Ubuntu system, so install the equivalents of these packages and run" \
      "the commands at the end of this script by hand: $*"
  fi
  missing=$(missing_packages "$@")
  if [ -z "$missing" ]; then
    return
  fi
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null ||
      die "these packages are missing and there is no sudo; run as root: apt-get install $missing"
    root="sudo"
  fi
  echo "Installing: $missing"
  log=$(mktemp)
  # The names are words of one list on purpose.
  # shellcheck disable=SC2086
  if ! { $root apt-get update -q && $root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    rm -f "$log"
    die "could not install: $missing (see above; is there a network, and are the package sources set?)"
  fi
  rm -f "$log"
}
