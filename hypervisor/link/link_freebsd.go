package link

import (
	"context"
	"fmt"
	"net"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
)

// Link is one machine's tap, on no bridge and without a route, in a group that
// one pf rule fences.
type Link struct{}

var errNotImplemented = fmt.Errorf("link on FreeBSD: %w", errdefs.ErrNotImplemented)

// Open returns errdefs.ErrNotImplemented.
func Open(context.Context, *receipt.Book) (*Link, error) { return nil, errNotImplemented }

// Dial returns errdefs.ErrNotImplemented.
func (l *Link) Dial(context.Context, uint32) (net.Conn, error) { return nil, errNotImplemented }

// Close returns errdefs.ErrNotImplemented.
func (l *Link) Close() error { return errNotImplemented }
