package stdio

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

func init() {
	receipt.Register((*Logger)(nil).Kind(), func() receipt.Resource { return new(Logger) })
}

// Logger is the receipt of a logger's process. A logger outlives its shim, to
// write down what is still in its pipes, but not by much.
type Logger struct{ proc.Receipt }

// orphanGrace is what a logger without a shim has to end by itself, and once
// more after a SIGTERM. containerd gives `delete` 5 s for everything.
const orphanGrace = time.Second

// Kind implements receipt.Resource.
func (*Logger) Kind() string { return "logger" }

// Undo implements receipt.Resource. It returns when the logger has exited.
func (l *Logger) Undo(ctx context.Context) error {
	found, err := l.Find()
	errs := []error{err}
	for _, id := range found {
		errs = append(errs, seeOut(ctx, id))
	}
	return errors.Join(errs...)
}

func seeOut(ctx context.Context, id proc.ID) error {
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		wait, cancel := context.WithTimeout(ctx, orphanGrace)
		err := id.Wait(wait)
		cancel()
		if err == nil {
			return nil
		}
		if err := id.Signal(signal); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return id.Wait(ctx)
}
