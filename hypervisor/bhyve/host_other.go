//go:build !freebsd

package bhyve

import (
	"context"
	"fmt"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
)

func openLink(context.Context, *receipt.Book) (tapLink, error) {
	return nil, fmt.Errorf("a tap for bhyve: %w", errdefs.ErrNotImplemented)
}

func adoptLink(string, string, *receipt.Book) (tapLink, error) {
	return nil, fmt.Errorf("a tap for bhyve: %w", errdefs.ErrNotImplemented)
}

func processorModel() (string, error) {
	return "", fmt.Errorf("the processor under vmm(4): %w", errdefs.ErrNotImplemented)
}
