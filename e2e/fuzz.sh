#!/bin/bash
# make fuzz: every fuzz target for FUZZTIME, one after the other. What one finds is
# written to its package's testdata/fuzz, where it stays as a test, and ends the run.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${FUZZTIME:-30s}
out=$(mktemp)
trap 'rm -f "$out"' EXIT

# The end of the time is sometimes taken for a failure before Go 1.27
# (go.dev/issue/75804): then nothing else was reported and no input written.
only_time_is_up() {
  grep -q '^ *context deadline exceeded$' "$out" && ! grep -Eq 'Failing input|panic|_test\.go:' "$out"
}

for pkg in $(go list ./proto/... ./agent/... ./controller/...); do
  dir=$(go list -f '{{.Dir}}' "$pkg")
  for target in $(grep -ho '^func Fuzz[A-Za-z0-9]*' "$dir"/*_test.go 2>/dev/null | cut -d' ' -f2); do
    echo "== $pkg $target, $time"
    # Minimizing what is merely interesting would take most of the time.
    if ! go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 1s "$pkg" 2>&1 | tee "$out"; then
      only_time_is_up || exit 1
      echo "== $target found nothing: its time was up, which this version of Go reports as a failure"
    fi
  done
done
