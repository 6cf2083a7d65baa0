#!/bin/sh
# Regenerates the Go code beside each .proto file of agentproto/v1 and
# pool/api/v1. protoc comes from Debian's protobuf-compiler; the two plugins are
# pinned by tools/go.mod and built into the cache directory.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
bin=$top/.cache/bin
mkdir -p "$bin"
go build -C "$top/tools" -o "$bin/" google.golang.org/protobuf/cmd/protoc-gen-go github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc
for dir in agentproto/v1 pool/api/v1; do
	cd "$top/$dir"
	PATH=$bin:$PATH protoc --proto_path=. --go_out=paths=source_relative:. --go-ttrpc_out=paths=source_relative:. *.proto
done
