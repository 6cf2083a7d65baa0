package netbench

import (
	"context"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
)

// onHost calls f with a network namespace, which is a thread's.
func onHost(_ context.Context, f func(host) error) error {
	ns, err := netns.New()
	if err != nil {
		return err
	}
	defer ns.Close()
	return f(func(f func() error) error { return netns.Do(ns, f) })
}
