package netbench

import (
	"context"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
)

// onHost calls f in a network namespace of its own.
func onHost(_ context.Context, f func() error) error {
	ns, err := netns.New()
	if err != nil {
		return err
	}
	defer ns.Close()
	return netns.Do(ns, f)
}
