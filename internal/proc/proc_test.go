package proc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// longer than anything here takes on a busy machine, short enough for a test
// that hangs.
const patience = 20 * time.Second

func start(t *testing.T, name string, arg ...string) (*exec.Cmd, ID) {
	t.Helper()
	cmd := exec.Command(name, arg...)
	// Kept open by cmd: "read" in a shell waits for ever.
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	id, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, id
}

func alive(t *testing.T, id ID) bool {
	t.Helper()
	ok, err := id.Alive()
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

func TestIdentitySeparatesProcessesWithOnePid(t *testing.T) {
	_, id := start(t, "sleep", "1000")
	if !alive(t, id) {
		t.Error("a running process is not alive")
	}
	earlier := ID{Pid: id.Pid, Start: id.Start - 1}
	if alive(t, earlier) {
		t.Error("an earlier process with the same pid is alive")
	}
	if err := earlier.Signal(unix.SIGKILL); !errdefs.IsNotFound(err) {
		t.Errorf("signal to an earlier process: %v, want not found", err)
	}
	if err := earlier.Kill(t.Context()); err != nil {
		t.Errorf("kill of an earlier process: %v", err)
	}
	if err := earlier.Wait(t.Context()); err != nil {
		t.Errorf("wait for an earlier process: %v", err)
	}
	if !alive(t, id) {
		t.Error("the process died of what was meant for an earlier one")
	}
}

func TestZeroIDNamesNothing(t *testing.T) {
	var id ID
	if alive(t, id) {
		t.Error("alive")
	}
	// Pid 0 and below would be process groups to kill(2).
	if err := id.Signal(unix.SIGTERM); !errdefs.IsNotFound(err) {
		t.Errorf("signal: %v, want not found", err)
	}
	if err := id.Wait(t.Context()); err != nil {
		t.Errorf("wait: %v", err)
	}
}

func TestUnreapedChildHasExited(t *testing.T) {
	cmd, id := start(t, "sleep", "1000")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := id.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if alive(t, id) {
		t.Error("alive after Kill")
	}
	if err := cmd.Wait(); err == nil {
		t.Error("Kill reaped the child of another owner")
	}
	if _, err := Identify(id.Pid); !errdefs.IsNotFound(err) {
		t.Errorf("identify after the end: %v, want not found", err)
	}
}

func TestWaitForAnotherProcessesChild(t *testing.T) {
	// The shell prints its child's pid, and stays and reaps nobody until its stdin ends.
	sh := exec.Command("sh", "-c", "sleep 1000 & echo $!; read _; kill -9 $!; read _")
	stdin, err := sh.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := sh.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sh.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(bufio.NewReader(stdout), &pid); err != nil {
		t.Fatal(err)
	}
	id, err := Identify(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { id.Signal(unix.SIGKILL); stdin.Close(); sh.Wait() })

	type end struct {
		status syscall.WaitStatus
		known  bool
		err    error
	}
	done := make(chan end, 1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() {
		status, known, err := id.WaitStatus(ctx)
		done <- end{status, known, err}
	}()
	select {
	case e := <-done:
		t.Fatalf("it returned before the exit: %+v", e)
	default:
	}
	fmt.Fprintln(stdin)
	// The status is told by some systems only; what is told is true.
	e := <-done
	if e.err != nil || e.known && e.status.Signal() != syscall.SIGKILL || !e.known && runtime.GOOS == "freebsd" {
		t.Fatalf("%+v", e)
	}
	t.Logf("status known: %v", e.known)
}

func TestWaitEndsWithItsContext(t *testing.T) {
	_, id := start(t, "sleep", "1000")
	gaveUp := errors.New("gave up")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() { done <- id.Wait(ctx) }()
	cancel(gaveUp)
	select {
	case err := <-done:
		if !errors.Is(err, gaveUp) {
			t.Errorf("got %v, want the context's cause", err)
		}
	case <-time.After(patience):
		t.Fatal("Wait ignores its context")
	}
	if !alive(t, id) {
		t.Error("the process is gone")
	}
}

func TestReceiptFindsProcessByArgument(t *testing.T) {
	const mark = "3f8e4c1e-0e4e-4d0e-9d4b-6f6d1c9f2a11"
	_, marked := start(t, "sh", "-c", "read _; :", mark)
	_, similar := start(t, "sh", "-c", "read _; :", mark+"x")

	path := filepath.Join(t.TempDir(), "receipts")
	book, err := receipt.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := book.Write(&Receipt{Arg: mark}); err != nil {
		t.Fatal(err)
	}
	// As after a crash: someone else reads the book.
	book, err = receipt.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := book.UndoAll(ctx); err != nil {
		t.Fatal(err)
	}
	if alive(t, marked) {
		t.Error("the marked process still runs")
	}
	if !alive(t, similar) {
		t.Error("a process with a similar argument was killed")
	}
	if book.Len() != 0 {
		t.Error("the receipt is still in the book")
	}
}

func TestReceiptFindsProcessByEnvironment(t *testing.T) {
	const mark = "MARK=5b0d6c43-7d0a-4a58-8f6e-0b6b8e1f7a52"
	t.Setenv("MARK", mark[len("MARK="):])
	_, marked := start(t, "sh", "-c", "read _; :")
	t.Setenv("MARK", mark[len("MARK="):]+"x")
	// An argument is no environment.
	_, similar := start(t, "sh", "-c", "read _; :", mark)

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := (&Receipt{Env: mark}).Undo(ctx); err != nil {
		t.Fatal(err)
	}
	if alive(t, marked) {
		t.Error("the marked process still runs")
	}
	if !alive(t, similar) {
		t.Error("a process with a similar environment was killed")
	}
}

func TestReceiptPrefersIdentity(t *testing.T) {
	_, id := start(t, "sleep", "1000")
	gone := ID{Pid: id.Pid, Start: id.Start - 1}
	if err := (&Receipt{ID: gone, Arg: "1000"}).Undo(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !alive(t, id) {
		t.Error("killed a process that has the pid of one that has ended")
	}
	if err := (&Receipt{Arg: "1000"}).Undo(t.Context()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("undo by an argument that cannot be unique: %v, want invalid argument", err)
	}
	if !alive(t, id) {
		t.Error("killed by an argument that cannot be unique")
	}
}

func TestIdentifySelf(t *testing.T) {
	a, err := Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := Identify(os.Getpid()); err != nil || a != b {
		t.Errorf("identity changed from %v to %v (%v)", a, b, err)
	}
}
