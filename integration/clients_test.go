//go:build linux || freebsd

package integration

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

// clientCases are what every runtime has to do alike through every client.
var clientCases = []struct {
	name string
	run  func(*clientRig)
}{
	{"hello", clientHello},
	{"process", clientProcess},
	{"long stdout", clientStdout},
	{"exec", clientExec},
	{"tty", clientTTY},
	{"stop", clientStop},
	{"remove", clientRemove},
	{"volumes", clientVolumes},
	{"read-only root", clientReadOnlyRoot},
}

// TestClients describes a case once, and runs it through each client.
func TestClients(t *testing.T) {
	for _, rt := range runtimes {
		t.Run(rt.name, func(t *testing.T) {
			for _, client := range clients(t) {
				t.Run(client.Name(), func(t *testing.T) {
					for _, c := range clientCases {
						t.Run(c.name, func(t *testing.T) { c.run(&clientRig{newRig(t, rt.runtime), client}) })
					}
				})
			}
		})
	}
}

// clientRig is a rig with one client.
type clientRig struct {
	*rig
	client lab.Client
}

// container describes one with an id of its own.
func (r *clientRig) container(command ...string) lab.Container {
	return lab.Container{ID: r.newID(), Runtime: r.runtime, Command: command}
}

// within is a context for one step.
func (r *clientRig) within() (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(r.ctx, commandTimeout, fmt.Errorf("took longer than %v", commandTimeout))
}

// cleanup is a context for what is done after the test.
func (r *clientRig) cleanup() context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), commandTimeout)
	r.Cleanup(cancel)
	return ctx
}

// run runs a container to its end.
func (r *clientRig) run(c lab.Container) lab.Result {
	r.Helper()
	ctx, cancel := r.within()
	defer cancel()
	result, err := r.client.Run(ctx, c)
	if err != nil {
		r.Fatalf("%v (%v)", err, context.Cause(ctx))
	}
	return result
}

// start starts a container that is there until the test ends.
func (r *clientRig) start(c lab.Container) string {
	r.Helper()
	r.Cleanup(func() {
		if err := r.client.Remove(r.cleanup(), c.ID); err != nil {
			r.Errorf("remove: %v", err)
		}
	})
	ctx, cancel := r.within()
	defer cancel()
	if err := r.client.Start(ctx, c); err != nil {
		r.Fatalf("%v (%v)", err, context.Cause(ctx))
	}
	return c.ID
}

// exec runs a process in a container to its end; its exit code is the result's.
func (r *clientRig) exec(id string, in io.Reader, out io.Writer, command ...string) lab.Result {
	r.Helper()
	ctx, cancel := r.within()
	defer cancel()
	cmd := r.client.Exec(ctx, id, lab.ExecProcess{Command: command, Stdin: in != nil})
	cmd.Stdin, cmd.Stdout = in, out
	result := r.wait(ctx, cmd)
	result.Code = r.client.ExitCode(result)
	return result
}

func (r *clientRig) state(id string) (lab.State, error) {
	ctx, cancel := r.within()
	defer cancel()
	return r.client.State(ctx, id)
}

// wantExit waits for a container's end.
func (r *clientRig) wantExit(id string, code int) {
	r.Helper()
	r.eventually(lab.Patience(20*time.Second), func() error {
		s, err := r.state(id)
		if err == nil && (s.Running || s.ExitCode != code) {
			err = fmt.Errorf("container %s is %+v, want the exit code %d", id, s, code)
		}
		return err
	})
}

func clientHello(r *clientRig) {
	result := r.run(r.container("/bin/sh", "-c", "echo out; echo err >&2; exit 7"))
	r.expect(result, 7, "out\n")
	if !strings.Contains(result.Stderr, "err\n") {
		r.Errorf("stderr is %q, want err in it", result.Stderr)
	}
}

func clientProcess(r *clientRig) {
	const script = `echo $A; pwd; id -u; id -g; echo $#; for a; do echo "[$a]"; done`
	c := r.container("/bin/sh", "-c", script, "sh", "two words", "", "ü")
	c.Env, c.Cwd, c.UID = []string{"A=b c"}, "/tmp", 1000
	r.expect(r.run(c), 0, "b c\n/tmp\n1000\n1000\n3\n[two words]\n[]\n[ü]\n")
}

// clientLines is output that is more than anything on the way holds. Some clients
// keep all of it in a log, one line a message, so it has to be text.
const clientLines = 300_000

func clientStdout(r *clientRig) {
	result := r.run(r.container("/bin/seq", fmt.Sprint(clientLines)))
	var want strings.Builder
	for i := range clientLines {
		fmt.Fprintln(&want, i+1)
	}
	if result.Code != 0 || result.Stdout != want.String() {
		tail := result.Stdout[max(0, len(result.Stdout)-100):]
		report := r.Errorf
		if r.reference() { // containerd's shim sends loggers SIGTERM at once, and they lose what they have not read
			report = r.Logf
		}
		report("exit code %d, %d bytes of %d, ending with %q; %s", result.Code, len(result.Stdout), want.Len(), tail, result.Stderr)
	}
}

// clientBulk is as much by way of an exec, which has no log.
const clientBulk = 16 << 20

func clientExec(r *clientRig) {
	c := r.container("/bin/probe", "signals")
	c.Env = []string{"FROM=spec"}
	id := r.start(c)
	r.expect(r.exec(id, nil, nil, "/bin/sh", "-c", "echo $FROM"), 0, "spec\n")
	if result := r.exec(id, nil, nil, "/bin/sh", "-c", "exit 3"); result.Code != 3 {
		r.Errorf("want exit code 3 from\n%s", result)
	}
	// A process that is killed by a signal.
	if result := r.exec(id, nil, nil, "/bin/sh", "-c", "kill -9 $$"); result.Code != 128+9 {
		r.Errorf("want exit code %d from\n%s", 128+9, result)
	}
	if result := r.exec(id, nil, nil, "/bin/there/is/no/such/program"); result.Code == 0 || result.Stderr == "" {
		r.Errorf("want a message and not exit code 0 from\n%s", result)
	}
	r.expect(r.exec(id, strings.NewReader("x\n"), nil, "/bin/cat"), 0, "x\n")
	sum, err := pattern.Sum(pattern.Reader(clientBulk))
	if err != nil {
		r.Fatal(err)
	}
	r.expect(r.exec(id, pattern.Reader(clientBulk), nil, "/bin/probe", "sum"), 0, sum+"\n")
	r.wantPatternOf(clientBulk, func(out io.Writer) {
		r.mustOK(r.exec(id, nil, out, "/bin/probe", "gen", fmt.Sprint(clientBulk)))
	})
}

func clientTTY(r *clientRig) {
	id := r.start(r.container("/bin/probe", "signals"))
	r.onTerminalOf(func() *exec.Cmd {
		return r.client.Exec(r.ctx, id, lab.ExecProcess{Command: []string{"/bin/probe", "winsize"}, Stdin: true, TTY: true})
	})
}

func clientStop(r *clientRig) {
	stop := func(id string, grace time.Duration) {
		r.Helper()
		ctx, cancel := r.within()
		defer cancel()
		if err := r.client.Stop(ctx, id, grace); err != nil {
			r.Error(err)
		}
	}
	for _, c := range []struct {
		trap  string
		grace time.Duration
		code  int
	}{
		{"exit 42", lab.Patience(20 * time.Second), 42},
		{"", time.Second, 128 + 9},
	} {
		id := r.start(r.container("/bin/sh", "-c", "trap '"+c.trap+"' TERM; touch /tmp/ready; while :; do sleep 1; done"))
		r.eventually(commandTimeout, func() error {
			if result := r.exec(id, nil, nil, "/bin/ls", "/tmp/ready"); result.Code != 0 {
				return fmt.Errorf("%s", result)
			}
			return nil
		})
		stop(id, c.grace)
		r.wantExit(id, c.code)
	}
}

func clientRemove(r *clientRig) {
	id := r.start(r.container("/bin/probe", "signals"))
	if s, err := r.state(id); err != nil || !s.Running {
		r.Errorf("a running container is %+v, %v", s, err)
	}
	ctx, cancel := r.within()
	defer cancel()
	if err := r.client.Remove(ctx, id); err != nil {
		r.Errorf("remove a running container: %v", err)
	}
	if s, err := r.state(id); !errdefs.IsNotFound(err) {
		r.Errorf("a container that was removed is %+v, %v", s, err)
	}
}

func clientVolumes(r *clientRig) {
	rw, ro := r.hostDir(), r.hostDir()
	single := filepath.Join(r.hostDir(), "single")
	for _, name := range []string{filepath.Join(rw, "from-host"), filepath.Join(ro, "from-host"), single} {
		if err := os.WriteFile(name, []byte("host\n"), 0o644); err != nil {
			r.Fatal(err)
		}
	}
	c := r.container("/bin/sh", "-c", `cat /mnt/rw/from-host /mnt/ro/from-host /mnt/single
echo guest > /mnt/rw/from-guest || echo not written
! touch /mnt/ro/new || echo written
! sh -c 'echo x >> /mnt/single' || echo changed`)
	c.Mounts = []lab.BindMount{
		{Source: rw, Target: "/mnt/rw"},
		{Source: ro, Target: "/mnt/ro", ReadOnly: true},
		{Source: single, Target: "/mnt/single", ReadOnly: true},
	}
	r.expect(r.run(c), 0, "host\nhost\nhost\n")
	if data, err := os.ReadFile(filepath.Join(rw, "from-guest")); err != nil || string(data) != "guest\n" {
		r.Errorf("the guest's file reads %q, %v", data, err)
	}
}

func clientReadOnlyRoot(r *clientRig) {
	c := r.container("/bin/sh", "-c", "touch /etc/file || echo refused")
	c.ReadOnlyRoot = true
	r.expect(r.run(c), 0, "refused\n")
}
