// Package edge is what is in front of containerd's services in the shim. Requests
// come in through it, and put what they are about into the log. Errors leave
// through it, and get their gRPC code here and nowhere else.
package edge

import (
	"context"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
)

// Method serves requests by f, whose context has a logger that names the sandbox,
// container and exec of the request: the logs of all shims end in containerd's.
func Method[Req, Resp any](f func(context.Context, *Req) (*Resp, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		req := new(Req)
		if err := unmarshal(req); err != nil {
			return nil, err
		}
		return f(log.WithLogger(ctx, log.G(ctx).WithFields(about(req))), req)
	}
}

// about is what is named in a request of one of the services.
func about(req any) log.Fields {
	fields := log.Fields{}
	name := func(field, id string) {
		if id != "" {
			fields[field] = id
		}
	}
	if r, ok := req.(interface{ GetSandboxID() string }); ok {
		name("sandbox", r.GetSandboxID())
	}
	if r, ok := req.(interface{ GetID() string }); ok {
		name("container", r.GetID())
	}
	if r, ok := req.(interface{ GetExecID() string }); ok {
		name("exec", r.GetExecID())
	}
	return fields
}

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
