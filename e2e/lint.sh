#!/bin/bash
# make lint: what a reviewer should not have to say.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$BIN:$PATH
status=0
fail() { echo "lint: $*" >&2; status=1; }

unformatted=$(git ls-files '*.go' | xargs gofmt -l)
[ -z "$unformatted" ] || fail "gofmt would change: $unformatted"
go vet -tags e2e ./... || fail "go vet"
staticcheck -tags e2e ./... || fail "staticcheck"
(cd proto && buf lint) || fail "buf lint"
before=$(git status --porcelain)
make -s proto crd
[ "$before" = "$(git status --porcelain)" ] || fail "generated files are not up to date: run make proto crd and commit"
exit $status
