package hooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

func sh(script string, env ...string) specs.Hook {
	return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: env}
}

func seconds(n int) *int { return &n }

func newBook(t *testing.T) *receipt.Book {
	t.Helper()
	book, err := receipt.Open(filepath.Join(t.TempDir(), "receipts"))
	if err != nil {
		t.Fatal(err)
	}
	return book
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestHooksGetTheStateAndTheirOwnEnvironment(t *testing.T) {
	t.Setenv("OF_THE_SHIM", "x")
	dir, book := t.TempDir(), newBook(t)
	state := specs.State{Version: "1.2.0", ID: "c", Status: specs.StateCreating, Pid: 7, Bundle: "/b", Annotations: map[string]string{"a": "b"}}
	err := Run(t.Context(), book, CreateRuntime, []specs.Hook{
		sh("cat > " + dir + "/state; echo $0 > " + dir + "/argv0"),
		sh(`echo "$A,$OF_THE_SHIM" > `+dir+"/env", "A=1"),
	}, state)
	if err != nil {
		t.Fatal(err)
	}
	var got specs.State
	if err := json.Unmarshal([]byte(read(t, dir+"/state")), &got); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(state) {
		t.Errorf("state is %v, want %v", got, state)
	}
	if got := read(t, dir+"/argv0"); got != "sh\n" {
		t.Errorf("argv[0] is %q", got)
	}
	if got := read(t, dir+"/env"); got != "1,\n" {
		t.Errorf("environment is %q, want the hook's own", got)
	}
	if book.Len() != 0 {
		t.Errorf("%d receipts are left", book.Len())
	}
}

func TestAFailingHookIsTheLast(t *testing.T) {
	dir := t.TempDir()
	err := Run(t.Context(), newBook(t), Prestart, []specs.Hook{
		sh(":"), sh("echo why; echo >&2 and how; exit 3"), sh("touch " + dir + "/third"),
	}, specs.State{})
	var failure *Error
	var exit *exec.ExitError
	if !errors.As(err, &failure) || !errors.As(err, &exit) || exit.ExitCode() != 3 || failure.Index != 1 || failure.Kind != Prestart {
		t.Fatalf("got %v, want the failure of hook 1 with code 3", err)
	}
	for _, want := range []string{"why", "and how", "prestart", "/bin/sh"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
	if _, err := os.Stat(dir + "/third"); err == nil {
		t.Error("the hook after the one that failed was run")
	}
}

func TestAHookThatIsNotThere(t *testing.T) {
	err := Run(t.Context(), nil, Prestart, []specs.Hook{{Path: "/there/is/no/hook"}}, specs.State{})
	if !errdefs.IsNotFound(err) {
		t.Errorf("got %v, want not found", err)
	}
}

func TestAHooksTimeout(t *testing.T) {
	dir, book := t.TempDir(), newBook(t)
	h := sh("echo begun; sleep 1000 & echo $! > " + dir + "/pid; wait")
	h.Timeout = seconds(1)
	err := Run(t.Context(), book, Poststart, []specs.Hook{h}, specs.State{})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "begun") {
		t.Errorf("got %v, want a deadline exceeded that quotes the output", err)
	}
	var pid int
	if _, err := fmt.Sscan(read(t, dir+"/pid"), &pid); err != nil {
		t.Fatal(err)
	}
	if id, err := proc.Identify(pid); err == nil {
		// It may be on its way out.
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := id.Wait(ctx); err != nil {
			t.Errorf("what the hook had started still runs: %v", err)
		}
	}
	if book.Len() != 0 {
		t.Errorf("%d receipts are left", book.Len())
	}
}

func TestAHookMayLeaveADaemon(t *testing.T) {
	dir := t.TempDir()
	err := Run(t.Context(), nil, Poststart, []specs.Hook{sh("sleep 1000 & echo $! > " + dir + "/pid")}, specs.State{})
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(read(t, dir+"/pid"), &pid); err != nil {
		t.Fatal(err)
	}
	id, err := proc.Identify(pid)
	if err != nil {
		t.Fatalf("the daemon is gone: %v", err)
	}
	if err := id.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A hook has a receipt from before it learns what to do.
func TestAHooksReceipt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "receipts")
	book, err := receipt.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := Run(t.Context(), book, Prestart, []specs.Hook{sh("read -r _; cp " + path + " " + dir + "/seen; :")}, specs.State{}); err != nil {
		t.Fatal(err)
	}
	if seen := read(t, dir+"/seen"); !strings.Contains(seen, `"pid"`) {
		t.Errorf("the book had %s", seen)
	}
}

func TestDebtIsPaidByWhoeverReadsTheBook(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(t.TempDir(), "receipts")
	book, err := receipt.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	line, err := book.Write(&Debt{})
	if err != nil {
		t.Fatal(err)
	}
	err = line.Amend(&Debt{
		Hooks: []specs.Hook{sh("exit 1"), sh("cat >> " + dir + "/state")},
		State: specs.State{ID: "c", Status: specs.StateStopped},
	})
	if err != nil {
		t.Fatal(err)
	}
	// As after a crash.
	if book, err = receipt.Open(path); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := book.UndoAll(gone); err == nil || book.Len() != 1 {
		t.Errorf("a debt that could not be paid: %v, %d receipts", err, book.Len())
	}
	for range 2 { // once is enough
		if err := book.UndoAll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, dir+"/state"); strings.Count(got, `"id":"c"`) != 1 || !strings.Contains(got, "stopped") {
		t.Errorf("the hook read %q", got)
	}
}

func TestNothingIsDueBeforeTheFirstHook(t *testing.T) {
	book := newBook(t)
	if _, err := book.Write(&Debt{}); err != nil {
		t.Fatal(err)
	}
	if err := book.UndoAll(t.Context()); err != nil || book.Len() != 0 {
		t.Errorf("%v, %d receipts are left", err, book.Len())
	}
}
