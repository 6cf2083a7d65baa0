package edge

import (
	"context"
	"errors"
	"fmt"
	"testing"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func TestError(t *testing.T) {
	for _, tc := range []struct {
		err   error
		code  codes.Code
		level logrus.Level
	}{
		{fmt.Errorf("x: %w", errdefs.ErrNotFound), codes.NotFound, logrus.DebugLevel},
		{fmt.Errorf("x: %w", errdefs.ErrNotImplemented), codes.Unimplemented, logrus.DebugLevel},
		{fmt.Errorf("x: %w", errdefs.ErrUnavailable), codes.Unavailable, logrus.ErrorLevel},
		{errors.New("x"), codes.Unknown, logrus.ErrorLevel},
	} {
		logger, hook := logtest.NewNullLogger()
		logger.SetLevel(logrus.DebugLevel)
		ctx := log.WithLogger(t.Context(), logrus.NewEntry(logger))
		if err := Error(ctx, "create", tc.err); status.Code(err) != tc.code {
			t.Errorf("%v: became %v; want %s", tc.err, err, tc.code)
		}
		if e := hook.LastEntry(); e == nil || e.Level != tc.level || e.Data["method"] != "create" {
			t.Errorf("%v: logged as %+v; want level %s and the method", tc.err, e, tc.level)
		}
	}
	if err := Error(t.Context(), "create", nil); err != nil {
		t.Errorf("nothing became %v", err)
	}
}

// Whatever is logged for a request names what it is about.
func TestMethod(t *testing.T) {
	for _, tc := range []struct {
		call ttrpc.Method
		req  proto.Message
		want log.Fields
	}{
		{failing[taskapi.KillRequest], &taskapi.KillRequest{ID: "c1", ExecID: "x1"}, log.Fields{"container": "c1", "exec": "x1"}},
		{failing[taskapi.PauseRequest], &taskapi.PauseRequest{ID: "c1"}, log.Fields{"container": "c1"}},
		{failing[sandboxapi.StopSandboxRequest], &sandboxapi.StopSandboxRequest{SandboxID: "s1"}, log.Fields{"sandbox": "s1"}},
	} {
		logger, hook := logtest.NewNullLogger()
		ctx := log.WithLogger(t.Context(), logrus.NewEntry(logger))
		data, err := proto.Marshal(tc.req)
		if err != nil {
			t.Fatal(err)
		}
		_, err = tc.call(ctx, func(into any) error { return proto.Unmarshal(data, into.(proto.Message)) })
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%T: got %v", tc.req, err)
		}
		e := hook.LastEntry()
		if e == nil {
			t.Errorf("%T: nothing was logged", tc.req)
			continue
		}
		for _, field := range []string{"sandbox", "container", "exec"} {
			if e.Data[field] != tc.want[field] {
				t.Errorf("%T: logged with %v, want %v", tc.req, e.Data, tc.want)
			}
		}
	}
	refused := errors.New("not a request")
	if _, err := failing[taskapi.KillRequest](t.Context(), func(any) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("got %v, want %v", err, refused)
	}
}

// failing serves requests of which all fail.
func failing[Req any](ctx context.Context, unmarshal func(any) error) (any, error) {
	return Method(func(ctx context.Context, _ *Req) (*Req, error) {
		return nil, Error(ctx, "fail", errdefs.ErrUnavailable)
	})(ctx, unmarshal)
}
