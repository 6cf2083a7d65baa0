//go:build linux

package agent

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/tcptest"
)

// Output that a process writes while it is held goes to the next connection, all
// of it and in order.
func TestOutputChangesConnections(t *testing.T) {
	p := openTestIO(t, "stdout")
	w := openService(t, p.stdout, unix.O_WRONLY)
	o := p.pumps["stdout"].(*outlet)
	_, err := w.Write([]byte("before"))
	must(t, err)
	got := make([]byte, 6)
	_, err = io.ReadFull(p.host["stdout"], got)
	must(t, err)

	must(t, o.hold(t.Context()))
	if n := o.count(); n != 6 {
		t.Errorf("%d bytes were sent, want 6", n)
	}
	_, err = w.Write([]byte("after"))
	must(t, err)
	host, guest := tcptest.Pair(t)
	o.attach(guest)
	o.release()
	w.Close()
	rest, err := io.ReadAll(host)
	if string(rest) != "after" || err != nil {
		t.Errorf("%q, %v came on the second connection", rest, err)
	}
	if rest, err := io.ReadAll(p.host["stdout"]); len(rest) > 0 || err != nil {
		t.Errorf("%q, %v came on the first connection", rest, err)
	}
	p.finishSoon(t)
}

// Input of one connection is there before that of the next, whose end alone is
// the end.
func TestInputChangesConnections(t *testing.T) {
	p := openTestIO(t, "stdin")
	p.serviceOpened(func() {})
	r := openService(t, p.stdin, unix.O_RDONLY)
	in := p.pumps["stdin"].(*inlet)
	soon, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := in.hold(soon, 6); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("held before the input was there: %v", err)
	}
	_, err := p.host["stdin"].Write([]byte("before"))
	must(t, err)
	must(t, in.hold(t.Context(), 6))
	p.host["stdin"].Close()
	host, guest := tcptest.Pair(t)
	in.attach(guest)
	in.release()
	_, err = host.Write([]byte("after"))
	must(t, err)
	must(t, host.CloseWrite())
	got, err := io.ReadAll(r)
	if string(got) != "beforeafter" || err != nil {
		t.Errorf("the process has read %q, %v", got, err)
	}
	p.abort()
}

// A stream that has ended takes no other connection.
func TestEndedOutputRefusesConnections(t *testing.T) {
	p := openTestIO(t, "stdout")
	openService(t, p.stdout, unix.O_WRONLY).Close()
	if _, err := io.ReadAll(p.host["stdout"]); err != nil {
		t.Fatal(err)
	}
	p.relays.Wait()
	host, guest := tcptest.Pair(t)
	p.pumps["stdout"].attach(guest)
	if rest, err := io.ReadAll(host); len(rest) > 0 || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
	p.finishSoon(t)
}
