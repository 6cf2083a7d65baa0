package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// nerdctlCases are what people do with nerdctl that is not said by clientCases.
var nerdctlCases = []struct {
	name string
	run  func(*nerdctlRig)
}{
	{"run", nerdctlRun},
	{"run -it", nerdctlTerminal},
	{"run -i", nerdctlStdin},
	{"kill", nerdctlKill},
	{"pause", nerdctlPause},
	{"stats", nerdctlStats},
	{"inspect", nerdctlInspect},
	{"cp", nerdctlCopy},
	{"restricted", nerdctlRestricted},
	{"--init", nerdctlInit},
}

func TestNerdctl(t *testing.T) {
	client, err := lab.NewNerdctlClient(theLab)
	if err != nil {
		t.Fatal(err)
	}
	for _, rt := range runtimes {
		t.Run(rt.name, func(t *testing.T) {
			for _, c := range nerdctlCases {
				t.Run(c.name, func(t *testing.T) {
					c.run(&nerdctlRig{&clientRig{newRig(t, rt.runtime), client}, client})
				})
			}
		})
	}
}

// nerdctlRig is a clientRig for what only nerdctl has.
type nerdctlRig struct {
	*clientRig
	nerdctl *lab.NerdctlClient
}

// do runs nerdctl to its end.
func (r *nerdctlRig) do(args ...string) lab.Result {
	r.Helper()
	ctx, cancel := r.within()
	defer cancel()
	return r.wait(ctx, r.nerdctl.Command(ctx, args...))
}

// must is do for what has to succeed.
func (r *nerdctlRig) must(args ...string) lab.Result {
	r.Helper()
	return r.mustOK(r.do(args...))
}

// runArgs is `nerdctl run` of the lab's image with flags, and the name that the
// container gets. It is removed when the test ends.
func (r *nerdctlRig) runArgs(flags []string, command ...string) (name string, args []string) {
	r.Helper()
	name = r.newID()
	r.Cleanup(func() {
		if err := r.nerdctl.Remove(r.cleanup(), name); err != nil {
			r.Error(err)
		}
	})
	args = append([]string{"run", "--runtime", r.runtime, "--pull", "never", "--net", "none", "--name", name}, flags...)
	return name, append(append(args, lab.Image), command...)
}

// detached starts a container.
func (r *nerdctlRig) detached(flags []string, command ...string) string {
	r.Helper()
	name, args := r.runArgs(append([]string{"--detach"}, flags...), command...)
	r.must(args...)
	return name
}

// inspect is what nerdctl says of a container, as far as the tests look at it.
func (r *nerdctlRig) inspect(name string) (v struct {
	State struct {
		Status   string
		ExitCode int
		Pid      int
	}
	Config struct{ Hostname string }
}) {
	r.Helper()
	out := strings.Trim(strings.TrimSpace(r.must("container", "inspect", name).Stdout), "[]")
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		r.Fatalf("%v: %s", err, out)
	}
	return v
}

func nerdctlRun(r *nerdctlRig) {
	// In the foreground, with a log of its own beside what is printed.
	name, args := r.runArgs(nil, "/bin/sh", "-c", "echo out; echo err >&2; exit 7")
	result := r.do(args...)
	r.expect(result, 7, "out\n")
	if !strings.Contains(result.Stderr, "err\n") {
		r.Errorf("stderr is %q, want err in it", result.Stderr)
	}
	r.removeFIFOs(name)
	name = r.detached(nil, "/bin/sh", "-c", "for i in 1 2 3; do echo line $i; done")
	r.must("wait", name)
	r.expect(r.do("logs", name), 0, "line 1\nline 2\nline 3\n")
	r.expect(r.do("logs", "--tail", "1", name), 0, "line 3\n")
}

// removeFIFOs removes what nerdctl 2.1 leaves of a container that ran in the
// foreground, whatever the runtime is.
func (r *nerdctlRig) removeFIFOs(name string) {
	r.Helper()
	id := strings.TrimSpace(r.must("container", "inspect", "--format", "{{.ID}}", name).Stdout)
	fifos, err := filepath.Glob("/run/containerd/fifo/*/" + id + "-*")
	if err != nil {
		r.Fatal(err)
	}
	for _, fifo := range fifos {
		if err := os.RemoveAll(filepath.Dir(fifo)); err != nil {
			r.Error(err)
		}
	}
}

func nerdctlTerminal(r *nerdctlRig) {
	name, args := r.runArgs([]string{"--interactive", "--tty"}, "/bin/probe", "winsize")
	r.onTerminalOf(func() *exec.Cmd { return r.nerdctl.Command(r.ctx, args...) })
	r.removeFIFOs(name)
}

func nerdctlStdin(r *nerdctlRig) {
	// It ends by itself: nerdctl 2.1 may lose the end of its standard input,
	// whatever the runtime is.
	name, args := r.runArgs([]string{"--interactive"}, "/bin/head", "-n", "2")
	ctx, cancel := r.within()
	defer cancel()
	cmd := r.nerdctl.Command(ctx, args...)
	cmd.Stdin = strings.NewReader("one\ntwo\n")
	r.expect(r.wait(ctx, cmd), 0, "one\ntwo\n")
	r.removeFIFOs(name)
}

func nerdctlKill(r *nerdctlRig) {
	name := r.detached(nil, "/bin/probe", "signals")
	r.must("kill", "--signal", "KILL", name)
	r.wantExit(name, 128+9)
	if s := r.inspect(name).State; s.Status != "exited" || s.ExitCode != 128+9 {
		r.Errorf("a killed container is %+v", s)
	}
}

func nerdctlPause(r *nerdctlRig) {
	name := r.detached(nil, "/bin/sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; done")
	r.must("exec", name, "/bin/sh", "-c", "echo written > /tmp/file")
	r.must("pause", name)
	if s := r.inspect(name).State; s.Status != "paused" {
		r.Errorf("a paused container is %+v", s)
	}
	if result := r.do("exec", name, "/bin/true"); result.Code == 0 {
		r.Errorf("exec in a paused container: %s", result)
	}
	// Its files can be had.
	to := filepath.Join(r.hostDir(), "file")
	r.must("cp", name+":/tmp/file", to)
	if data, err := os.ReadFile(to); err != nil || string(data) != "written\n" {
		r.Errorf("a file of a paused container is %q, %v", data, err)
	}
	r.must("unpause", name)
	if !r.reference() {
		// Those of a running one cannot. What nerdctl would take for them are the
		// host's.
		if result := r.do("cp", to, name+":/stray"); result.Code == 0 {
			r.Errorf("copied to a running container: %s", result)
		}
		if _, err := os.Stat("/stray"); err == nil {
			r.Error("copied to the host")
		}
	}
	if s := r.inspect(name).State; s.Status != "running" {
		r.Errorf("a container that goes on is %+v", s)
	}
	r.must("exec", name, "/bin/true")
}

func nerdctlStats(r *nerdctlRig) {
	name := r.detached(nil, "/bin/probe", "signals")
	var v struct{ MemUsage, PIDs string }
	out := r.must("stats", "--no-stream", "--format", "json", name).Stdout
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		r.Fatalf("%v: %s", err, out)
	}
	if v.MemUsage == "" || strings.HasPrefix(v.MemUsage, "0B ") || v.PIDs == "0" {
		r.Errorf("a running container uses %s", out)
	}
}

func nerdctlInspect(r *nerdctlRig) {
	name := r.detached([]string{"--hostname", "a-name"}, "/bin/probe", "signals")
	v := r.inspect(name)
	if v.State.Status != "running" || v.State.Pid == 0 || v.Config.Hostname != "a-name" {
		r.Errorf("inspection says %+v", v)
	}
	r.expect(r.do("exec", name, "/bin/hostname"), 0, "a-name\n")
	if result := r.must("ps", "--format", "{{.Names}} {{.Status}}"); !strings.Contains(result.Stdout, name+" Up") {
		r.Errorf("no running %s in\n%s", name, result)
	}
}

// nerdctlCopy copies to and from a container that does not run: of one that does,
// nerdctl takes the root of the process that it was told as the container's,
// and that is the machine's.
func nerdctlCopy(r *nerdctlRig) {
	dir := r.hostDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	if err := os.WriteFile(from, []byte("copied\n"), 0o644); err != nil {
		r.Fatal(err)
	}
	name := r.newID()
	r.Cleanup(func() {
		if err := r.nerdctl.Remove(r.cleanup(), name); err != nil {
			r.Error(err)
		}
	})
	r.must("create", "--runtime", r.runtime, "--pull", "never", "--net", "none", "--name", name, lab.Image, "/bin/cp", "/tmp/in", "/tmp/out")
	r.must("cp", from, name+":/tmp/in")
	r.must("start", name)
	r.must("wait", name)
	r.must("cp", name+":/tmp/out", to)
	if data, err := os.ReadFile(to); err != nil || string(data) != "copied\n" {
		r.Errorf("the file comes back as %q, %v", data, err)
	}
}

func nerdctlRestricted(r *nerdctlRig) {
	name := r.detached([]string{
		"--memory", "64m", "--cpus", "0.5", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
	}, "/bin/probe", "signals")
	status := r.must("exec", name, "/bin/cat", "/proc/self/status").Stdout
	for _, want := range []string{"CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status, want) {
			r.Errorf("no %q in\n%s", want, status)
		}
	}
	r.wantLimits(name, 64<<20, "50000 100000")
	name = r.detached([]string{"--security-opt", "seccomp=unconfined"}, "/bin/probe", "signals")
	if status := r.must("exec", name, "/bin/cat", "/proc/self/status").Stdout; !strings.Contains(status, "Seccomp:\t0") {
		r.Errorf("seccomp is not off in\n%s", status)
	}
}

// wantLimits reads the limits that hold in a container, by cgroups v2 or v1. On
// a host of v1 nobody asks for a cgroup namespace, and a guest is always of v2.
func (r *nerdctlRig) wantLimits(name string, memory int, cpu string) {
	r.Helper()
	const script = `cd /sys/fs/cgroup
if [ -d memory ]; then
	cat memory/memory.limit_in_bytes
	echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us)
else
	cd ./$(sed -n 's/^0:://p' /proc/self/cgroup)
	cat memory.max cpu.max
fi`
	r.expect(r.do("exec", name, "/bin/sh", "-c", script), 0, fmt.Sprintf("%d\n%s\n", memory, cpu))
}

func nerdctlInit(r *nerdctlRig) {
	// tini waits for what its child has orphaned, and passes signals on.
	name := r.detached([]string{"--init", "--init-binary", "tini-static"}, "/bin/sh", "-c", "trap 'exit 42' TERM; touch /tmp/ready; while :; do sleep 1; done")
	r.eventually(commandTimeout, func() error {
		if result := r.do("exec", name, "/bin/ls", "/tmp/ready"); result.Code != 0 {
			return fmt.Errorf("%s", result)
		}
		return nil
	})
	if result := r.must("exec", name, "/bin/cat", "/proc/1/comm"); !strings.HasPrefix(result.Stdout, "tini") {
		r.Errorf("process 1 is %q", result.Stdout)
	}
	r.must("stop", "--time", fmt.Sprint(int((20 * time.Second).Seconds())), name)
	r.wantExit(name, 42)
}
