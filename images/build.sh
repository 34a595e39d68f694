#!/bin/sh
# Builds the three programs and their image archives into $BUILD/images. VERSION is
# stamped into the programs; unset, it is the chart's appVersion.
set -eu
cd "$(dirname "$0")/.."
exec "${GO:-go}" run ./images/build -out "${BUILD:-build}/images" ${VERSION:+-version "$VERSION"}
