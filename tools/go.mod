// The programs that the build and the tests use, pinned apart from the
// module's own dependencies: none of this is linked into what is shipped.
module github.com/containerd-shim-bhyve/containerd-shim-bhyve/tools

go 1.26

tool (
	github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc
	google.golang.org/protobuf/cmd/protoc-gen-go
)

require (
	github.com/containerd/ttrpc v1.2.9 // indirect
	google.golang.org/protobuf v1.36.11 // indirect
)
