//go:build !freebsd

package bhyve

import (
	"context"
	"fmt"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
)

var errNoTap = fmt.Errorf("a tap for bhyve: %w", errdefs.ErrNotImplemented)

func openLink(context.Context, *receipt.Book) (tapLink, error) { return nil, errNoTap }

func adoptLink(string, string, *receipt.Book) (tapLink, error) { return nil, errNoTap }

func openPort(context.Context, *receipt.Book) (tap, error) { return nil, errNoTap }

func adoptPort(string, string, *receipt.Book) (tap, error) { return nil, errNoTap }

func tapsOf(context.Context, int) ([]receipt.Resource, error) { return nil, errNoTap }

func processorModel() (string, error) {
	return "", fmt.Errorf("the processor under vmm(4): %w", errdefs.ErrNotImplemented)
}
