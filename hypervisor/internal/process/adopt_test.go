package process

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

const ownerEnv = "TEST_OWNER_OF_A_PROCESS_IN"

// TestMain is a process's owner where it is told to be one: it starts the
// process, says that it has, and waits to be killed.
func TestMain(m *testing.M) {
	dir := os.Getenv(ownerEnv)
	if dir == "" {
		os.Exit(m.Run())
	}
	book, err := receipt.Open(filepath.Join(dir, "owner"))
	if err != nil {
		log.L.Fatal(err)
	}
	// It says a word to whoever reads each time that it is told to.
	p := New(dir, "/bin/sh", "-c", `echo up; while read word; do echo "$word"; echo "no $word" >&2; done <"$1"`, ownersMark, filepath.Join(dir, "words"))
	if err := p.Start(log.L, book, ownersMark); err != nil {
		log.L.Fatal(err)
	}
	os.Stdout.WriteString("started\n")
	select {}
}

const ownersMark = "5c1c0f6a-3c52-4a19-8a2b-6c37f6a1d8b0"

func TestProcessOutlivesItsOwner(t *testing.T) {
	dir := t.TempDir()
	words := filepath.Join(dir, "words")
	if err := unix.Mkfifo(words, 0o600); err != nil {
		t.Fatal(err)
	}
	// Open both ways, so that it is there before and after its reader.
	feed, err := os.OpenFile(words, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer feed.Close()
	owner := exec.Command(os.Args[0])
	owner.Env = append(os.Environ(), ownerEnv+"="+dir)
	owner.Stderr = os.Stderr
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { owner.Process.Kill(); owner.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	owner.Process.Kill()
	owner.Wait()

	// What the owner has left is found by its receipt.
	id := idInBook(t, filepath.Join(dir, "owner"))
	// Without a reader: neither waits nor is the end of it.
	feed.WriteString("alone\n")
	book, err := receipt.Open(filepath.Join(dir, "heir"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Adopt(log.L, dir, id, book, ownersMark)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Kill(context.Background()) })
	if book.Len() != 1 || p.Pid() != id.Pid || !p.Started() || p.HasExited() {
		t.Errorf("%d receipts, pid %d for %d", book.Len(), p.Pid(), id.Pid)
	}
	feed.WriteString("heard\n")
	until(t, func() bool {
		return strings.HasSuffix(string(p.Console()), "alone\nheard\n") && p.Said() == "no heard"
	})

	m := machineOf(p)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := m.Park(ctx); err != nil {
		t.Error(err)
	}
	if err := p.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	status, known := p.Status()
	if !known && runtime.GOOS == "freebsd" || known && status.Signal() != syscall.SIGKILL {
		t.Errorf("status %v, known %v", status, known)
	}
	if err := p.Forget(); err != nil || book.Len() != 0 {
		t.Errorf("forget: %v, %d receipts", err, book.Len())
	}
	for _, name := range []string{consoleFIFO, stderrFIFO} {
		if _, err := os.Stat(filepath.Join(dir, name)); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
}

func TestDisownedProcessGoesOn(t *testing.T) {
	p, book := start(t, "read _; :")
	m := machineOf(p)
	for range 2 {
		if err := m.GiveUp(); err != nil {
			t.Fatal(err)
		}
	}
	if book.Len() != 0 {
		t.Errorf("%d receipts", book.Len())
	}
	destroyed := false
	if err := m.Release(t.Context(), func(context.Context) error { destroyed = true; return nil }); err != nil || destroyed {
		t.Errorf("destroy of what is another's: %v, done: %v", err, destroyed)
	}
	if alive, err := p.ID().Alive(); err != nil || !alive {
		t.Errorf("alive %v, %v", alive, err)
	}
	heir, err := Adopt(log.L, p.Cmd.Dir, p.ID(), book, "1ed2c5ee-8f07-4f0c-9e08-4f2a4a64bb0e")
	if err != nil {
		t.Fatal(err)
	}
	if err := heir.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The parent has reaped it.
	select {
	case <-p.Exited():
	case <-time.After(patience):
		t.Error("it was not reaped")
	}
}

func idInBook(t *testing.T, path string) proc.ID {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var entries []struct{ Resource proc.Receipt }
	if err := json.Unmarshal(data, &entries); err != nil || len(entries) != 1 {
		t.Fatalf("%s: %v", data, err)
	}
	return entries[0].Resource.ID
}

// until looks until cond holds.
func until(t *testing.T, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !cond(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it does not come about")
		}
	}
}
