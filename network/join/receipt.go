package join

import "github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"

// Receipt is a namespace with a machine's tap in it. Its undoing removes the tap
// and what leads to it.
type Receipt struct {
	Path string `json:"path"`
	// Inode is the namespace's: another may have got the path since.
	Inode uint64 `json:"inode"`
	// Mark is the alias of the tap, and its name before it is called Tap: a tap
	// without it is another machine's, which was there before.
	Mark string `json:"mark"`
}

func init() {
	receipt.Register(Receipt{}.Kind(), func() receipt.Resource { return new(Receipt) })
}

// Kind implements receipt.Resource.
func (Receipt) Kind() string { return "network namespace" }
