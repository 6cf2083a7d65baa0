package command

import (
	"context"
	"errors"
	"io/fs"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// A program gets its input and arguments as they are, and an environment without
// anything of this process's.
func TestRun(t *testing.T) {
	t.Setenv("SECRET", "x")
	r := New(time.Minute, 1)
	for _, tc := range []struct {
		stdin string
		argv  []string
		want  string
	}{
		{"pass all\n", []string{"/bin/cat"}, "pass all\n"},
		{"", []string{"/bin/cat"}, ""},
		{"", []string{"/bin/echo", "$SECRET; exit 1", "'", "*"}, "$SECRET; exit 1 ' *\n"},
		{"", []string{"/usr/bin/env"}, "LC_ALL=C\n"},
	} {
		out, err := r.Run(t.Context(), tc.stdin, tc.argv...)
		if err != nil || string(out) != tc.want {
			t.Errorf("%q: %q, %v, want %q", tc.argv, out, err, tc.want)
		}
	}
}

func TestRunFails(t *testing.T) {
	r := New(time.Minute, 0)
	out, err := r.Run(t.Context(), "", "/bin/sh", "-c", "echo said; echo no such rule >&2; exit 3")
	var exit *exec.ExitError
	if out != nil || !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.HasPrefix(err.Error(), "/bin/sh -c ") || !strings.HasSuffix(err.Error(), ": no such rule") {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := r.Run(t.Context(), "", "/no/such/program"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
}

// Nothing is waited for longer than was said.
func TestRunIsBounded(t *testing.T) {
	if _, err := New(10*time.Millisecond, 0).Run(t.Context(), "", "/bin/sleep", "600"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a program that does not end: %v", err)
	}
	// What it has started is left behind, and holds its output.
	if _, err := New(10*time.Millisecond, 0).Run(t.Context(), "", "/bin/sh", "-c", "/bin/sleep 3 & wait"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a program with a child that does not end: %v", err)
	}
	gone := errors.New("nobody wants it any more")
	ctx, cancel := context.WithCancelCause(t.Context())
	r := New(time.Minute, 1)
	r.slots <- struct{}{}
	cancel(gone)
	if _, err := r.Run(ctx, "", "/bin/cat"); !errors.Is(err, gone) {
		t.Errorf("in the place of another: %v", err)
	}
	<-r.slots
	for range 2 {
		if _, err := r.Run(t.Context(), "", "/bin/cat"); err != nil {
			t.Errorf("after it: %v", err)
		}
	}
}
