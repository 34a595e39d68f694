#!/bin/bash
# make down: removes what make up made. Without CONTEXT that is the lab with
# everything in it; with CONTEXT the release, its volume claims and its namespace.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -n "${CONTEXT:-}" ]; then
  helm --kube-context "$CONTEXT" -n "$NAMESPACE" uninstall "$RELEASE" --wait --ignore-not-found
  kubectl --context "$CONTEXT" delete namespace "$NAMESPACE" --ignore-not-found
else
  mkdir -p "$BUILD/bin"
  go build -o "$BUILD/bin/lab" ./e2e/lab/cmd/lab
  "$BUILD/bin/lab" down
  echo "the lab is down; build/ is kept for the next time (make clean removes it)"
fi
