#!/bin/bash
# Installs the Debian packages that building and testing flare need: RocksDB
# and the libraries it compresses with, a C++ compiler for cgo, and a client that
# checks the protocol; further packages are arguments. Installs only what is missing; needs root only then.
set -euo pipefail

packages=(g++ librocksdb-dev libsnappy-dev liblz4-dev libzstd-dev zlib1g-dev libbz2-dev libmemcached-tools "$@")
missing=()
for p in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0

echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
