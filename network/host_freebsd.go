package network

import (
	"fmt"

	"github.com/containerd/errdefs"
)

func newHost(Config) (host, error) {
	return nil, fmt.Errorf("network: on FreeBSD: %w", errdefs.ErrNotImplemented)
}
