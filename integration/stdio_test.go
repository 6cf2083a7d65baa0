//go:build linux || freebsd

package integration

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/creack/pty"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

// bulk is far more than any pipe, socket or window on the way holds.
const bulk = 64 << 20

func testHello(r *rig) {
	result := r.run(nil, "/bin/sh", "-c", "echo out; echo err >&2; exit 7")
	r.expect(result, 7, "out\n")
	if !strings.Contains(result.Stderr, "err\n") {
		r.Errorf("stderr is %q, want err in it", result.Stderr)
	}
}

func testProcess(r *rig) {
	const script = `echo $A; pwd; id -u; id -g; echo $#; for a; do echo "[$a]"; done`
	result := r.run([]string{"--env", "A=b c", "--cwd", "/tmp", "--user", "1000:1000"},
		"/bin/sh", "-c", script, "sh", "two words", "", "ü")
	r.expect(result, 0, "b c\n/tmp\n1000\n1000\n3\n[two words]\n[]\n[ü]\n")
}

func testLargeStdout(r *rig) {
	r.wantPattern(func(out io.Writer) {
		r.mustOK(r.ctrIn(nil, out, r.runArgs(nil, "/bin/probe", "gen", fmt.Sprint(bulk))...))
	})
}

func testLargeStdin(r *rig) {
	result := r.ctrIn(pattern.Reader(bulk), nil, r.runArgs(nil, "/bin/probe", "sum")...)
	r.expect(result, 0, bulkSum(r)+"\n")
}

// testShortExecs is about output that is still on its way when its process has
// already ended.
func testShortExecs(r *rig) {
	events := r.subscribe()
	id := r.start(nil)
	for i := range 20 {
		want := fmt.Sprintf("line %d of a process that is gone", i)
		r.expect(r.exec(id, nil, nil, nil, "/bin/echo", want), 0, want+"\n")
	}
	// More than a pipe holds, and no newline at its end.
	for range 3 {
		result := r.exec(id, nil, nil, nil, "/bin/head", "-c", "200000", "/dev/zero")
		if result.Code != 0 || len(result.Stdout) != 200_000 {
			r.Errorf("%d bytes of 200000, exit code %d, %s", len(result.Stdout), result.Code, result.Stderr)
		}
	}
	const crowd = 12
	var ended []<-chan lab.Result
	for i := range crowd {
		ended = append(ended, r.background(newLineWaiter(), "task", "exec", "--exec-id", fmt.Sprint("crowd", i), id, "/bin/true"))
	}
	for _, e := range ended {
		if result := <-e; result.Code != 0 {
			r.Error(result)
		}
	}
	r.must("task", "kill", id)
	r.wantExecEvents(events, id, 20+3+crowd)
}

// wantExecEvents checks that each of n execs was added, started and ended, in
// this order, and that all of that was before the exit of init.
func (r *rig) wantExecEvents(events *subscription, id string, n int) {
	r.Helper()
	stages := []string{"/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"}
	reached := map[string]int{}
	for {
		e, err := events.next(r.ctx, id, commandTimeout)
		if err != nil {
			r.Fatalf("no exit of init: %v; seen are %v", err, reached)
		}
		if e.process == id && e.topic == "/tasks/exit" {
			break
		}
		if e.process == id {
			continue
		}
		if s := reached[e.process]; s == len(stages) || e.topic != stages[s] {
			r.Errorf("event %q, after %d of an exec", e, s)
		}
		reached[e.process]++
	}
	for process, s := range reached {
		if s != len(stages) {
			r.Errorf("%d of %d events of exec %s", s, len(stages), process)
		}
	}
	if len(reached) != n {
		r.Errorf("events of %d execs, want %d", len(reached), n)
	}
}

func testExec(r *rig) {
	id := r.start([]string{"--env", "FROM=spec"})

	r.expect(r.exec(id, nil, nil, nil, "/bin/sh", "-c", "echo $FROM; exit 3"), 3, "spec\n")
	r.expect(r.exec(id, nil, nil, []string{"--cwd", "/tmp", "--user", "1000:1000"}, "/bin/sh", "-c", "pwd; id -u"), 0, "/tmp\n1000\n")
	r.expect(r.exec(id, strings.NewReader("x\n"), nil, nil, "/bin/cat"), 0, "x\n")
	// A process that is killed by a signal.
	r.expect(r.exec(id, nil, nil, nil, "/bin/sh", "-c", "kill -9 $$"), 128+9, "")

	if result := r.exec(id, nil, nil, nil, "/bin/there/is/no/such/program"); result.Code == 0 || result.Stderr == "" {
		r.Errorf("want a message and not exit code 0 from\n%s", result)
	}
	r.wantPattern(func(out io.Writer) { r.mustOK(r.exec(id, nil, out, nil, "/bin/probe", "gen", fmt.Sprint(bulk))) })
	r.expect(r.exec(id, pattern.Reader(bulk), nil, nil, "/bin/probe", "sum"), 0, bulkSum(r)+"\n")
	// What an exec did is there for the next.
	r.expect(r.exec(id, nil, nil, nil, "/bin/sh", "-c", "echo kept > /tmp/file"), 0, "")
	r.expect(r.exec(id, nil, nil, nil, "/bin/cat", "/tmp/file"), 0, "kept\n")
}

func testTTY(r *rig) {
	id := r.newID()
	r.onTerminal([]string{"run", "--rm", "-t", "--runtime", r.runtime, lab.Image, id, "/bin/probe", "winsize"})
	id = r.start(nil)
	r.onTerminal([]string{"task", "exec", "-t", "--exec-id", "terminal", id, "/bin/probe", "winsize"})
}

func (r *rig) onTerminal(args []string) {
	r.Helper()
	r.onTerminalOf(func() *exec.Cmd { return r.Command(r.ctx, args...) })
}

// onTerminalOf runs a client with the winsize probe on a terminal of its own,
// resizes that, and ends the probe with a line.
func (r *rig) onTerminalOf(command func() *exec.Cmd) {
	r.Helper()
	cmd := command()
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: 91, Rows: 31})
	if err != nil {
		r.Fatal(err)
	}
	defer terminal.Close()
	lines := newLineWaiter()
	read := make(chan struct{})
	go func() {
		defer close(read)
		io.Copy(lines, terminal) // ends with EIO when the other side closes
	}()
	// ctr may set the size before or after the process has first asked for it.
	lines.waitFor(r, "size 91x31")
	if err := pty.Setsize(terminal, &pty.Winsize{Cols: 120, Rows: 40}); err != nil {
		r.Fatal(err)
	}
	// ctr sets the first size before it listens for changes, and so may have
	// missed this one: it is told until it has passed it on.
	lines.waitForPoking(r, "size 120x40", func() { cmd.Process.Signal(syscall.SIGWINCH) })
	if _, err := terminal.WriteString("\n"); err != nil {
		r.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			r.Errorf("%v: %v", cmd.Args, err)
		}
	case <-time.After(commandTimeout):
		cmd.Process.Kill()
		r.Errorf("%v does not end", cmd.Args)
	}
	terminal.Close()
	<-read
}

// wantPattern is wantPatternOf bulk bytes.
func (r *rig) wantPattern(write func(io.Writer)) {
	r.Helper()
	r.wantPatternOf(bulk, write)
}

// wantPatternOf fails the test unless write wrote size bytes of the pattern.
func (r *rig) wantPatternOf(size int64, write func(io.Writer)) {
	r.Helper()
	want, err := pattern.Sum(pattern.Reader(size))
	if err != nil {
		r.Fatal(err)
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		r.Fatal(err)
	}
	defer pr.Close()
	type result struct {
		sum string
		err error
	}
	got := make(chan result, 1)
	go func() {
		sum, err := pattern.Sum(pr)
		got <- result{sum, err}
	}()
	write(pw)
	pw.Close()
	if g := <-got; g.err != nil || g.sum != want {
		r.Errorf("received %s, %v; want %s", g.sum, g.err, want)
	}
}

func bulkSum(r *rig) string {
	sum, err := pattern.Sum(pattern.Reader(bulk))
	if err != nil {
		r.Fatal(err)
	}
	return sum
}
