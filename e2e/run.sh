#!/bin/bash
# make e2e SUITE=name: runs an end-to-end suite on the lab, which is brought up
# if it is not up and left as it was found.
set -euo pipefail
cd "$(dirname "$0")/.."
suite=${1:?usage: run.sh SUITE}

test=$(go test -tags e2e -list "(?i)^Test$suite\$" ./e2e/suites | grep ^Test) || {
  echo "no suite $suite; there are:" >&2
  go test -tags e2e -list . ./e2e/suites | sed -n 's/^Test/  /p' | tr '[:upper:]' '[:lower:]' >&2
  exit 2
}
make -s images
mkdir -p "$BUILD/bin"
go build -o "$BUILD/bin/lab" ./e2e/lab/cmd/lab
"$BUILD/bin/lab" build
"$BUILD/bin/lab" status >/dev/null 2>&1 || trap '"$BUILD/bin/lab" down' EXIT
"$BUILD/bin/lab" up
"$BUILD/bin/lab" load "$BUILD"/images/*.tar
eval "$("$BUILD/bin/lab" env)"
FLARE_E2E_ROOT=$PWD go test -tags e2e -count=1 -v -timeout 60m -run "^$test\$" ./e2e/suites
