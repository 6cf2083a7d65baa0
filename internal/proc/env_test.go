package proc

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestWithEnv(t *testing.T) {
	t.Setenv("PROC_TEST_HOME", "of "+t.TempDir())
	// The environment is there when the program has begun, a little after Start.
	cmd := exec.Command("/bin/sh", "-c", "echo up; read _")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("%q, %v", line, err)
	}
	id, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	found, err := WithEnv("PROC_TEST_HOME")
	if err != nil {
		t.Fatal(err)
	}
	// This process itself had it not when it was started.
	if len(found) != 1 || found[id] != os.Getenv("PROC_TEST_HOME") {
		t.Errorf("found %v, want %v", found, id)
	}
	if found, err := WithEnv("PROC_TEST"); err != nil || len(found) != 0 {
		t.Errorf("by the beginning of a name: %v, %v", found, err)
	}
}

// A file without a name is known all the same, and another of its name is not it.
func TestShares(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	file := func() *os.File {
		t.Helper()
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		// Both ways, so that it does not wait for another end.
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	writer := file()
	cmd := exec.Command("sleep", "1000")
	cmd.Stdout = writer
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	id, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	file()
	writer.Close()
	if shared, err := id.Shares(1); err != nil || !shared {
		t.Errorf("with a reader: %v, %v", shared, err)
	}
	reader.Close()
	if shared, err := id.Shares(1); err != nil || shared {
		t.Errorf("with none: %v, %v", shared, err)
	}
	if _, err := id.Shares(1000); !errdefs.IsNotFound(err) {
		t.Errorf("a file that is not open: %v", err)
	}
	if err := id.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := id.Shares(1); !errdefs.IsNotFound(err) {
		t.Errorf("of a process that has ended: %v", err)
	}
}
