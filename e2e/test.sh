#!/bin/bash
# make test: every unit and integration test, with the race detector. The
# chart's tests render it with the Helm that the lab's module pins.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${HELM:-}" ]; then
  HELM=$PWD/build/lab/bin/helm
  if [ ! -x "$HELM" ]; then
    echo "building helm (about two minutes when nothing is cached)"
    (cd e2e/lab/kubernetes && CGO_ENABLED=0 GOFLAGS=-buildvcs=false go build -o "$HELM" helm.sh/helm/v4/cmd/helm)
  fi
fi
export HELM
# Exploring is a matter of how many states, and has nothing that runs at a time.
go test -timeout 15m ./e2e/model
go test -race -timeout 30m "$@" ./...
