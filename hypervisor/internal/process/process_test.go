package process

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/log"
)

// longer than anything here takes on a busy machine.
const patience = 20 * time.Second

func start(t *testing.T, script string) (*Process, *receipt.Book) {
	t.Helper()
	book, err := receipt.Open(filepath.Join(t.TempDir(), "receipts"))
	if err != nil {
		t.Fatal(err)
	}
	const mark = "b7f0a7f2-2f3b-4c7e-8a53-6d5c2f0a9e11"
	p := New(t.TempDir(), "/bin/sh", "-c", script, mark)
	stdin, err := p.Cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(log.L, book, mark); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := p.Kill(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return p, book
}

func TestEnd(t *testing.T) {
	p, book := start(t, "echo booting; echo first >&2; echo last words >&2; exit 3")
	<-p.Ended()
	if got := string(p.Console()); got != "booting\n" {
		t.Errorf("console %q", got)
	}
	if p.Said() != "last words" || !strings.HasPrefix(string(p.Stderr()), "first\n") {
		t.Errorf("said %q of %q", p.Said(), p.Stderr())
	}
	if s, known := p.Status(); !known || s.ExitStatus() != 3 || p.ExitedAt().IsZero() || !p.HasExited() {
		t.Errorf("status %v at %v", s, p.ExitedAt())
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Errorf("kill what has ended: %v", err)
	}
	if book.Len() != 1 {
		t.Errorf("%d receipts, want one until it is forgotten", book.Len())
	}
	if err := p.Forget(); err != nil || book.Len() != 0 {
		t.Errorf("%d receipts after forget: %v", book.Len(), err)
	}
}

func TestReceiptEndsTheProcess(t *testing.T) {
	p, book := start(t, "read _; :")
	if err := book.UndoAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Ended():
	case <-time.After(patience):
		t.Fatal("it still runs")
	}
	if s, _ := p.Status(); s.Signal() != syscall.SIGKILL {
		t.Errorf("status %v", s)
	}
}

func TestDialEndsWithTheProcess(t *testing.T) {
	p, _ := start(t, "read _; :")
	dialling := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		_, err := p.Dial(context.Background(), func(ctx context.Context) (net.Conn, error) {
			close(dialling)
			<-ctx.Done()
			return nil, ctx.Err()
		})
		failed <- err
	}()
	<-dialling
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-failed:
		if !errors.Is(err, hypervisor.ErrExited) {
			t.Errorf("got %v", err)
		}
	case <-time.After(patience):
		t.Fatal("it still dials")
	}
	// What connects too late is not handed out.
	ours, theirs := net.Pipe()
	if _, err := p.Dial(context.Background(), func(context.Context) (net.Conn, error) { return ours, nil }); !errors.Is(err, hypervisor.ErrExited) {
		t.Errorf("got %v", err)
	}
	if _, err := theirs.Read(make([]byte, 1)); err == nil {
		t.Error("the late connection was left open")
	}
}

func TestNothingStarted(t *testing.T) {
	p := New(t.TempDir(), "/nonexistent")
	book, err := receipt.Open(filepath.Join(t.TempDir(), "receipts"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Forget(); err != nil {
		t.Error(err)
	}
	if err := p.Start(log.L, book, "mark"); err == nil || p.Started() {
		t.Errorf("started: %v", err)
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.Forget(); err != nil || book.Len() != 0 {
		t.Errorf("%d receipts: %v", book.Len(), err)
	}
}
