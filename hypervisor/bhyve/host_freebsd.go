package bhyve

import (
	"context"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/link"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"golang.org/x/sys/unix"
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

func openPort(ctx context.Context, book *receipt.Book) (tap, error) {
	p, err := link.OpenPort(ctx, book)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func adoptPort(name, mark string, book *receipt.Book) (tap, error) {
	p, err := link.AdoptPort(name, mark, book)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func tapsOf(ctx context.Context, pid int) ([]receipt.Resource, error) { return link.OpenedBy(ctx, pid) }

// processorModel is the processor by its name: FreeBSD tells guests of all
// that it has.
func processorModel() (string, error) { return unix.Sysctl("hw.model") }
