package link

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// Port is a tap that leads nowhere until somebody takes it: it is down, on no
// bridge, and fenced like a link. Who takes it describes it otherwise, and it is
// no longer the port's to destroy.
type Port struct{ heldTap }

// OpenPort makes a port, for a monitor to open by its name. The caller closes it,
// after the monitor. A receipt for the tap is written to book.
//
// errdefs.ErrFailedPrecondition is in the error where pf(4) does not fence the
// group.
func OpenPort(ctx context.Context, book *receipt.Book) (*Port, error) {
	if err := CheckFence(ctx); err != nil {
		return nil, fmt.Errorf("make port: %w", err)
	}
	p := &Port{}
	var err error
	p.tap, p.line, err = createTap(book, newMark())
	if err == nil {
		// bhyve(8) brings it up where net.link.tap.up_on_open is set.
		_, err = run(ctx, "/sbin/ifconfig", p.tap.Name, "inet6", "ifdisabled", "-auto_linklocal", "group", Group)
	}
	if err != nil {
		if p.line != nil {
			err = errors.Join(err, p.Close())
		}
		return nil, fmt.Errorf("make port: %w", err)
	}
	return p, nil
}

// AdoptPort takes over the port that a former owner has made with this tap,
// whether or not it still exists or is one, with a receipt in book. The caller
// closes it.
func AdoptPort(tap, mark string, book *receipt.Book) (*Port, error) {
	t, err := adoptTap(tap, mark, book)
	if err != nil {
		return nil, fmt.Errorf("adopt port: %w", err)
	}
	return &Port{t}, nil
}
