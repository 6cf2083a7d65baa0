//go:build linux

package agent

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseModules(t *testing.T) {
	got, err := parseModules(strings.NewReader("# in load order\n/lib/modules/a.ko\n\n  /lib/modules/b.ko \t x=1 y=2\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []module{{path: "/lib/modules/a.ko"}, {path: "/lib/modules/b.ko", params: "x=1 y=2"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, err := parseModules(strings.NewReader("/lib/modules/a.ko\nb.ko\n")); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a relative path: %v; want an error that names the line", err)
	}
}

func TestLoadModulesWithoutList(t *testing.T) {
	if err := loadModules(filepath.Join(t.TempDir(), "absent")); err != nil {
		t.Error(err)
	}
}

func TestLoadModulesNamesTheModule(t *testing.T) {
	list := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(list, []byte("/nonexistent/x.ko\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := loadModules(list); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nonexistent/x.ko") {
		t.Errorf("got %v; want what is missing", err)
	}
}

// A kernel may list controllers that it does not delegate.
func TestLinkDevices(t *testing.T) {
	dev := t.TempDir()
	for range 2 { // A second time finds them there.
		if err := linkDevices(dev); err != nil {
			t.Fatal(err)
		}
	}
	if target, err := os.Readlink(filepath.Join(dev, "stdin")); err != nil || target != "/proc/self/fd/0" {
		t.Errorf("stdin is %q, %v", target, err)
	}
	if err := linkDevices(filepath.Join(dev, "none")); err == nil {
		t.Error("no error without the directory")
	}
}

func TestDelegateControllers(t *testing.T) {
	root := t.TempDir()
	control := filepath.Join(root, "cgroup.subtree_control")
	for path, content := range map[string]string{filepath.Join(root, "cgroup.controllers"): "cpu memory pids\n", control: ""} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := delegateControllers(root); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(control); string(got) != "+cpu +memory +pids" {
		t.Errorf("wrote %q", got)
	}
	if err := delegateControllers(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without cgroup2: %v; want NotExist", err)
	}
}

// asInit names the variable by which a test runs itself again as process 1 of
// a PID namespace.
const asInit = "AGENT_TEST_AS_INIT"

// TestEndProcesses needs to be root, and to be process 1: it signals everyone.
func TestEndProcesses(t *testing.T) {
	if os.Getenv(asInit) != "" {
		endProcessesAsInit(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a PID namespace")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestEndProcesses$", "-test.v")
	cmd.Env = append(os.Environ(), asInit+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func endProcessesAsInit(t *testing.T) {
	if os.Getpid() != 1 {
		t.Fatal("not process 1: this would signal the machine's processes")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	start := func(script string) {
		cmd := exec.Command("sh", "-c", script)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
			t.Fatalf("%q: %v", line, err)
		}
	}
	start("echo ready; exec sleep 1000")
	// The children of a dead parent are process 1's.
	start("sleep 1000 & echo ready")
	go reapChildren(t.Context())

	begin := time.Now()
	if err := endProcesses(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it took %s to end processes that obey", took)
	}

	start("trap '' TERM; echo ready; while :; do sleep 1000; done")
	if err := endProcesses(t.Context(), 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if left, err := userProcesses("/proc"); err != nil || left > 0 {
		t.Errorf("%d processes are left, %v", left, err)
	}
}
