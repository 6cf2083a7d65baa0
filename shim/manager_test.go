package shim

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/shim"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/sandbox"
)

// file is a resource whose undo is to remove a file.
type file struct {
	Path string `json:"path"`
	// Stuck makes Undo fail.
	Stuck bool `json:"stuck"`
}

func init() { receipt.Register(file{}.Kind(), func() receipt.Resource { return new(file) }) }

func (file) Kind() string { return "test file" }

func (f file) Undo(context.Context) error {
	if f.Stuck {
		return errors.New("stuck")
	}
	return os.RemoveAll(f.Path)
}

// inBundle is the context that pkg/shim calls Stop with.
func inBundle(dir string) context.Context {
	return context.WithValue(context.Background(), shim.OptsKey{}, shim.Opts{BundlePath: dir})
}

func take(t *testing.T, dir string, f file) {
	t.Helper()
	book, err := sandbox.OpenReceipts(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := book.Write(f); err != nil {
		t.Fatal(err)
	}
}

func TestStopGivesBackWhatAKilledShimHeld(t *testing.T) {
	dir := t.TempDir()
	held := filepath.Join(dir, "held")
	if err := os.WriteFile(held, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	take(t, dir, file{Path: held})

	status, err := Manager{}.Stop(inBundle(dir), "c1")
	if err != nil {
		t.Fatal(err)
	}
	if status.ExitStatus != 137 || status.ExitedAt.IsZero() {
		t.Errorf("exit of a container that nobody saw end is %+v", status)
	}
	if _, err := os.Stat(held); !os.IsNotExist(err) {
		t.Errorf("still held: %v", err)
	}
	// containerd may call again.
	if _, err := (Manager{}).Stop(inBundle(dir), "c1"); err != nil {
		t.Errorf("second time: %v", err)
	}
}

func TestStopAnswersWithTheExitOnRecord(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "exit.json"), []byte(`{"status":3,"at":"2026-01-02T03:04:05Z"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	status, err := Manager{}.Stop(inBundle(dir), "c1")
	if err != nil || status.ExitStatus != 3 || status.ExitedAt.Year() != 2026 {
		t.Errorf("got %+v, %v", status, err)
	}
}

func TestStopSaysWhatItCouldNotGiveBack(t *testing.T) {
	dir := t.TempDir()
	take(t, dir, file{Stuck: true})
	if _, err := (Manager{}).Stop(inBundle(dir), "c1"); err == nil || !strings.Contains(err.Error(), "stuck") {
		t.Errorf("got %v", err)
	}
	book, err := sandbox.OpenReceipts(dir)
	if err != nil || book.Len() != 1 {
		t.Errorf("the receipt is gone: %v", err)
	}
}

// The socket of a shim that lives is not for a `delete` to remove.
func TestStopAndTheSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "stop") // A socket's path must be short.
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.WriteFile(filepath.Join(dir, addressFile), []byte("unix://"+path), 0o600); err != nil {
		t.Fatal(err)
	}
	exists := func() bool { _, err := os.Lstat(path); return err == nil }

	if _, err := (Manager{}).Stop(inBundle(dir), "c1"); err != nil {
		t.Fatal(err)
	}
	if !exists() {
		t.Error("the socket of a shim that answers was removed")
	}
	l.Close()
	if _, err := (Manager{}).Stop(inBundle(dir), "c1"); err != nil {
		t.Fatal(err)
	}
	if exists() {
		t.Error("the socket of a shim that is gone was left")
	}
}

func TestTheSandboxOfABundle(t *testing.T) {
	t.Chdir(t.TempDir())
	if got, err := sandboxOf("c1"); got != "c1" || err != nil {
		t.Errorf("without a config.json: got %q, %v", got, err)
	}
	for config, want := range map[string]string{
		`{}`: "c1",
		`{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}`: "pod",
		`{"annotations":{"io.kubernetes.cri.sandbox-id":""}}`:    "c1",
		`{"annotations":`: "c1", // For Create to refuse.
	} {
		if err := os.WriteFile("config.json", []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := sandboxOf("c1"); got != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", config, got, err, want)
		}
	}
}
