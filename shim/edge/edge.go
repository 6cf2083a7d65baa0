// Package edge is where errors leave the shim: what containerd's services
// answer with passes through here, and gets its gRPC code here and nowhere else.
package edge

import (
	"context"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
)

// Error turns err into one with the gRPC code of its errdefs kind, and logs it:
// loudly, unless it is the caller's own doing. method is what was asked for. The
// error of a request that succeeded is nil and stays it.
func Error(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	l := log.G(ctx).WithError(err).WithField("method", method)
	if callersOwn(err) {
		l.Debug("request refused")
	} else {
		l.Error("request failed")
	}
	return errgrpc.ToGRPC(err)
}

func callersOwn(err error) bool {
	return errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || errdefs.IsNotImplemented(err) || errdefs.IsCanceled(err)
}
