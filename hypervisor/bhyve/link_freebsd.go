package bhyve

import (
	"context"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/link"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

func openLink(ctx context.Context, book *receipt.Book) (tapLink, error) {
	l, err := link.Open(ctx, book)
	if err != nil {
		return nil, err
	}
	return l, nil
}

func adoptLink(tap, mark string, book *receipt.Book) (tapLink, error) {
	l, err := link.Adopt(tap, mark, book)
	if err != nil {
		return nil, err
	}
	return l, nil
}
