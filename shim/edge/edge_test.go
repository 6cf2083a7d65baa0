package edge

import (
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
