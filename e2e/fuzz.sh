#!/bin/bash
# make fuzz: every fuzz target for FUZZTIME, one after the other. What one finds is
# written to its package's testdata/fuzz, where it stays as a test, and ends the run.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${FUZZTIME:-30s}

for pkg in $(go list ./proto/... ./agent/...); do
  dir=$(go list -f '{{.Dir}}' "$pkg")
  for target in $(grep -ho '^func Fuzz[A-Za-z0-9]*' "$dir"/*_test.go 2>/dev/null | cut -d' ' -f2); do
    echo "== $pkg $target, $time"
    # Minimizing what is merely interesting would take most of the time.
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 1s "$pkg"
  done
done
