package task

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// The caller's time is nearly over before what takes longer is left alone, and
// that goes on.
func TestWaitAlmost(t *testing.T) {
	for _, tc := range []struct {
		what        string
		limit, work time.Duration
		done        bool
		after       time.Duration
	}{
		{"quick", 3 * time.Second, time.Second, true, time.Second},
		{"slow", 3 * time.Second, goOnLimit / 2, false, 3*time.Second - answerMargin},
		{"no limit", 0, goOnLimit / 2, true, goOnLimit / 2},
		{"hardly any time", answerMargin / 2, goOnLimit / 2, false, 0},
	} {
		t.Run(tc.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				if tc.limit > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tc.limit)
					defer cancel()
				}
				ended := make(chan error, 1)
				began := time.Now()
				done := waitAlmost(ctx, func(ctx context.Context) {
					select {
					case <-time.After(tc.work):
					case <-ctx.Done():
					}
					ended <- ctx.Err()
				})
				if took := time.Since(began); done != tc.done || took != tc.after {
					t.Errorf("ended: %v, after %v; want %v after %v", done, took, tc.done, tc.after)
				}
				if err := <-ended; err != nil || time.Since(began) != tc.work {
					t.Errorf("the work ended with %v after %v", err, time.Since(began))
				}
			})
		})
	}
}
