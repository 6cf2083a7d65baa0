package join

import (
	"context"
	"fmt"
	"net"

	"github.com/containerd/errdefs"
)

// Supported says whether this system has network namespaces.
const Supported = false

// Namespace is of Linux only.
type Namespace struct{}

// Open returns errdefs.ErrNotImplemented: FreeBSD has no network namespaces.
func Open(string) (*Namespace, error) {
	return nil, fmt.Errorf("network namespaces: on FreeBSD: %w", errdefs.ErrNotImplemented)
}

// New is Open.
func New() (*Namespace, error) { return Open("") }

// Path is empty.
func (n *Namespace) Path() string { return "" }

// Receipt names nothing.
func (n *Namespace) Receipt() Receipt { return Receipt{} }

// AddTap returns errdefs.ErrNotImplemented.
func (n *Namespace) AddTap() (net.HardwareAddr, error) { return nil, errdefs.ErrNotImplemented }

// Plug returns errdefs.ErrNotImplemented.
func (n *Namespace) Plug(from, tap string) error { return errdefs.ErrNotImplemented }

// Connect returns errdefs.ErrNotImplemented.
func (n *Namespace) Connect() (*Interface, error) { return nil, errdefs.ErrNotImplemented }

// Loopback is of Linux only.
type Loopback struct{}

// Loopback returns errdefs.ErrNotImplemented.
func (n *Namespace) Loopback() (*Loopback, error) { return nil, errdefs.ErrNotImplemented }

// Accept returns errdefs.ErrNotImplemented.
func (l *Loopback) Accept() (*net.TCPConn, uint16, error) { return nil, 0, errdefs.ErrNotImplemented }

// Close does nothing.
func (l *Loopback) Close() error { return nil }

// Close does nothing.
func (n *Namespace) Close() error { return nil }

// Undo implements receipt.Resource.
func (r Receipt) Undo(context.Context) error { return nil }
