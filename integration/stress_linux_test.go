package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// stressEnv is how many times TestStress repeats what it does: `make stress`
// says 100, and CI has only time for the default.
const (
	stressEnv     = "BHYVE_STRESS"
	stressDefault = 10
)

// TestStress does the same again and again: nothing of it may stay, in the world
// or in the processes that live on.
func TestStress(t *testing.T) {
	n := stressDefault
	if v := os.Getenv(stressEnv); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil {
			t.Fatalf("%s: %v", stressEnv, err)
		}
	}
	for _, c := range []struct {
		name string
		run  func(*rig, int)
	}{
		{"lifecycles", stressLifecycles},
		{"execs", stressExecs},
		{"ten at once", stressParallel},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(newRig(t, lab.RuntimeBhyve), n) })
	}
}

func stressLifecycles(r *rig, n int) {
	cycle := func() {
		r.Helper()
		r.expect(r.run(nil, "/bin/echo", "once more"), 0, "once more\n")
	}
	// The first makes what is kept: connections, directories, caches.
	cycle()
	before := r.use(r.ContainerdPid())
	for range n {
		cycle()
	}
	r.wantUse("containerd", r.ContainerdPid(), before)
}

func stressExecs(r *rig, n int) {
	id := r.start(nil)
	shim := r.findProcess("containerd-shim-bhyve", id).Pid
	exec := func() {
		r.Helper()
		r.expect(r.exec(id, strings.NewReader("x\n"), nil, nil, "/bin/cat"), 0, "x\n")
	}
	exec()
	before, daemon := r.use(shim), r.use(r.ContainerdPid())
	for range n {
		exec()
	}
	r.wantUse("the shim", shim, before)
	r.wantUse("containerd", r.ContainerdPid(), daemon)
}

// stressParallel starts, uses and ends ten sandboxes side by side. The rig looks
// for what stays of them.
func stressParallel(r *rig, _ int) {
	const crowd = 10
	before := r.use(r.ContainerdPid())
	errs := make([]error, crowd)
	var wg sync.WaitGroup
	for i := range errs {
		args := r.runArgs(nil, "/bin/echo", fmt.Sprint(i))
		wg.Go(func() {
			result, err := r.Ctr(r.ctx, args...)
			if err == nil && (result.Code != 0 || result.Stdout != fmt.Sprintln(i)) {
				err = errors.New(result.String())
			}
			errs[i] = err
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		r.Error(err)
	}
	r.wantUse("containerd", r.ContainerdPid(), before)
}

// use is what a process of containerd's making holds.
type use struct{ files, goroutines int }

var (
	goroutine = regexp.MustCompile(`goroutine \d+ \[`)
	dumpEnd   = "=== END goroutine stack dump ==="
	// copyEnd is what containerd says thereafter, of a copy in a file.
	copyEnd = "goroutine stack dump written to"
)

// use counts what a process has open, and its goroutines: containerd and its
// shims log them on SIGUSR1.
func (r *rig) use(pid int) (u use) {
	r.Helper()
	fds, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err != nil {
		r.Fatal(err)
	}
	began, err := r.LogSize()
	if err != nil {
		r.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGUSR1); err != nil {
		r.Fatal(err)
	}
	end := dumpEnd
	if pid == r.ContainerdPid() {
		end = copyEnd
	}
	var log string
	r.eventually(commandTimeout, func() error {
		if log, err = r.LogSince(began); err == nil && !strings.Contains(log, end) {
			err = fmt.Errorf("process %d has not logged its goroutines", pid)
		}
		return err
	})
	if err := os.RemoveAll(filepath.Join(r.TempDir(), fmt.Sprintf("containerd.%d.stacks.log", pid))); err != nil {
		r.Error(err)
	}
	return use{files: len(fds), goroutines: len(goroutine.FindAllString(log, -1))}
}

// useSlack is for connections that come and go by themselves; a leak is one for
// each repetition.
const useSlack = 4

// wantUse fails the test unless a process comes to hold no more than before.
func (r *rig) wantUse(who string, pid int, before use) {
	r.Helper()
	var now use
	r.eventually(30*time.Second, func() error {
		now = r.use(pid)
		if now.files > before.files+useSlack || now.goroutines > before.goroutines+useSlack {
			return fmt.Errorf("%s holds %+v, and %+v before", who, now, before)
		}
		return nil
	})
	r.Logf("%s held %+v and now %+v", who, before, now)
}
