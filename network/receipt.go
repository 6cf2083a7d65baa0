package network

import (
	"context"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// Receipt is a sandbox's network in a receipt book: written before Add, and
// undone by Del.
type Receipt struct {
	// Config is the network's. Its policy is not needed.
	Config Config `json:"config"`
	ID     string `json:"id"`
}

func init() {
	receipt.Register(Receipt{}.Kind(), func() receipt.Resource { return new(Receipt) })
}

// Kind implements receipt.Resource.
func (Receipt) Kind() string { return "network" }

// Undo implements receipt.Resource.
func (r Receipt) Undo(ctx context.Context) error {
	n, err := Open(r.Config)
	if err != nil {
		return err
	}
	_, err = n.Del(ctx, r.ID)
	return err
}
