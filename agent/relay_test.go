//go:build linux

package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/containerd/fifo"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/tcptest"
)

// testIO is a process's streams with both of their sides: what the host has,
// and paths for the part of the task service.
type testIO struct {
	*processIO
	host map[string]*net.TCPConn
}

func openTestIO(t *testing.T, names ...string) *testIO {
	t.Helper()
	s := newStreams()
	t.Cleanup(s.close)
	tio := &testIO{host: map[string]*net.TCPConn{}}
	var uris stdioURIs
	for _, name := range names {
		host, guest := tcptest.Pair(t)
		if err := s.offer(name, guest); err != nil {
			t.Fatal(err)
		}
		tio.host[name] = host
		*map[string]*string{"stdin": &uris.stdin, "stdout": &uris.stdout, "stderr": &uris.stderr}[name] = agentproto.StreamURI(name)
	}
	pio, err := openProcessIO(t.TempDir(), s, uris)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pio.abort)
	tio.processIO = pio
	return tio
}

// finishSoon is finish with a bound that only a bug reaches.
func (p *testIO) finishSoon(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.finish(ctx); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(p.dir); !os.IsNotExist(err) {
		t.Errorf("the FIFOs are still there: %v", err)
	}
}

func randomBytes(n int) []byte {
	var seed [32]byte
	copy(seed[:], "relay")
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}

// openService opens a FIFO as the task service does.
func openService(t *testing.T, path string, flag int) io.ReadWriteCloser {
	t.Helper()
	f, err := fifo.OpenFifo(t.Context(), path, flag, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestRelayOutputComplete(t *testing.T) {
	data := randomBytes(64 << 20)
	p := openTestIO(t, "stdout")
	go func() {
		w := openService(t, p.stdout, unix.O_WRONLY)
		defer w.Close()
		if _, err := w.Write(data); err != nil {
			t.Error(err)
		}
	}()
	h := sha256.New()
	if _, err := io.Copy(h, p.host["stdout"]); err != nil {
		t.Fatal(err)
	}
	if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
		t.Error("the data is not what was written")
	}
	p.finishSoon(t)
}

func TestRelayInputComplete(t *testing.T) {
	data := randomBytes(64 << 20)
	p := openTestIO(t, "stdin")
	// The writer that the task service keeps for itself.
	kept := openService(t, p.stdin, unix.O_WRONLY|unix.O_NONBLOCK)
	r := openService(t, p.stdin, unix.O_RDONLY|unix.O_NONBLOCK)
	p.serviceOpened(func() { kept.Close() })
	go func() {
		if _, err := p.host["stdin"].Write(data); err != nil {
			t.Error(err)
		}
		p.host["stdin"].CloseWrite()
	}()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
		t.Error("the data is not what was sent")
	}
	p.finishSoon(t)
}

// A process may write and be gone before anything else happens.
func TestRelayWritesAndExitsAtOnce(t *testing.T) {
	for i := range 50 {
		p := openTestIO(t, "stdout", "stderr")
		want := fmt.Sprintf("output %d\n", i)
		cmd := exec.Command("sh", "-c", `printf "$0" >"$1"; printf "$0" >"$2"`, want, p.stdout, p.stderr)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		p.finishSoon(t)
		for _, name := range []string{"stdout", "stderr"} {
			got, err := io.ReadAll(p.host[name])
			if err != nil || string(got) != want {
				t.Fatalf("%s of run %d: got %q, %v; want %q", name, i, got, err, want)
			}
		}
	}
}

// The end of input that comes before the task service is ready is not lost.
func TestRelayInputEndsBeforeServiceOpens(t *testing.T) {
	p := openTestIO(t, "stdin")
	p.host["stdin"].CloseWrite()
	kept := openService(t, p.stdin, unix.O_WRONLY|unix.O_NONBLOCK)
	r := openService(t, p.stdin, unix.O_RDONLY|unix.O_NONBLOCK)
	p.serviceOpened(func() { kept.Close() })
	if got, err := io.ReadAll(r); err != nil || len(got) > 0 {
		t.Errorf("got %q, %v; want end of file", got, err)
	}
	p.finishSoon(t)
}

// A process that ends without having read its input ends the relay, although
// the host would go on sending.
func TestRelayInputToNoReader(t *testing.T) {
	p := openTestIO(t, "stdin")
	r := openService(t, p.stdin, unix.O_RDONLY|unix.O_NONBLOCK)
	if _, err := p.host["stdin"].Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	r.Close()
	p.serviceOpened(func() {})
	// The host learns that no one reads: its writes come to fail.
	p.host["stdin"].SetWriteDeadline(time.Now().Add(10 * time.Second))
	_, err := io.Copy(p.host["stdin"], neverEnding{})
	if err == nil || os.IsTimeout(err) {
		t.Errorf("writing to a process that is gone: %v; want the connection to be closed", err)
	}
	p.finishSoon(t)
}

type neverEnding struct{}

func (neverEnding) Read(b []byte) (int, error) { return len(b), nil }

// A host that hangs up must not block the process.
func TestRelayOutputToNoHost(t *testing.T) {
	p := openTestIO(t, "stdout")
	w := openService(t, p.stdout, unix.O_WRONLY)
	p.host["stdout"].SetLinger(0)
	p.host["stdout"].Close()
	done := make(chan error, 1)
	go func() {
		_, err := w.Write(make([]byte, 8<<20))
		w.Close()
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the process is blocked on its output")
	}
	p.finishSoon(t)
}

// What nobody opened, nobody waits for.
func TestAbortUnopened(t *testing.T) {
	p := openTestIO(t, "stdin", "stdout", "stderr")
	ended := make(chan struct{})
	go func() {
		p.abort()
		p.abort()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("abort hangs on FIFOs that no one has opened")
	}
	if got, err := io.ReadAll(p.host["stdout"]); err != nil || len(got) > 0 {
		t.Errorf("got %q, %v; want end of file", got, err)
	}
	if _, err := os.Stat(p.dir); !os.IsNotExist(err) {
		t.Errorf("the FIFOs are still there: %v", err)
	}
}

// Output that the host does not read cannot hold up a deletion for ever.
func TestFinishIsBounded(t *testing.T) {
	p := openTestIO(t, "stdout")
	w := openService(t, p.stdout, unix.O_WRONLY)
	defer w.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.finish(ctx); err == nil {
		t.Error("finish succeeded while a writer was there")
	}
}

func TestProcessIOPaths(t *testing.T) {
	none, err := openProcessIO("/nonexistent", newStreams(), stdioURIs{})
	if err != nil {
		t.Fatal(err)
	}
	if none.stdin+none.stdout+none.stderr != "" {
		t.Errorf("a process without streams has %q, %q, %q", none.stdin, none.stdout, none.stderr)
	}
	p := openTestIO(t, "stdout")
	if p.stdin != "" || p.stderr != os.DevNull {
		t.Errorf("without them, stdin is %q and stderr %q; want none and %q", p.stdin, p.stderr, os.DevNull)
	}
}

func TestOpenProcessIOFailsWhole(t *testing.T) {
	s := newStreams()
	t.Cleanup(s.close)
	host, guest := tcptest.Pair(t)
	if err := s.offer("out", guest); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, uri := range []string{"stream:absent", "fifo:/x", "/run/fifo", "stream:"} {
		if _, err := openProcessIO(root, s, stdioURIs{stdout: agentproto.StreamURI("out"), stderr: uri}); err == nil {
			t.Errorf("stderr %q was accepted", uri)
		}
	}
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	// The claimed one is closed with the rest.
	if _, err := host.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("stdout's connection: %v; want end of file", err)
	}
}
