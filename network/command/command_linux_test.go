package command

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
)

// programEnv makes the test's program bhyve-net.
const programEnv = "BHYVE_NET_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if err := New().Run(ctx, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func TestCommands(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, "network.toml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "state = %q\ndns = [\"192.0.2.53\"]\n", filepath.Join(dir, "state")), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(stdin string, args ...string) (string, error) {
		t.Helper()
		var out bytes.Buffer
		c := New()
		c.Writer, c.Reader = &out, strings.NewReader(stdin)
		err := netns.Do(ns, func() error { return c.Run(t.Context(), append([]string{"bhyve-net", "--config", file}, args...)) })
		return out.String(), err
	}
	must := func(stdin string, args ...string) string {
		t.Helper()
		out, err := run(stdin, args...)
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		return out
	}
	if out := must("", "add", "a"); !strings.Contains(out, "ID=a\n") || !strings.Contains(out, "DNS='192.0.2.53'\n") {
		t.Errorf("add printed %q", out)
	}
	var result network.Result
	if err := json.Unmarshal([]byte(must("", "--json", "add", "a")), &result); err != nil || len(result.MAC) != 6 {
		t.Errorf("add --json: %+v, %v", result, err)
	}
	cni, err := current.NewResult([]byte(must("", "add", "--format", "cni", "a")))
	if err != nil {
		t.Fatal(err)
	}
	if r := cni.(*current.Result); len(r.Interfaces) != 3 || r.Interfaces[2].Mac != result.MAC.String() || r.Interfaces[2].Sandbox != "a" || len(r.IPs) != 1 || r.IPs[0].Address.IP.String() != result.Address.String() {
		t.Errorf("add --format cni: %+v", r)
	}
	if _, err := run("", "add", "--format", "yaml", "b"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("add in a format that nobody knows: %v", err)
	}
	if out := must("", "list"); strings.Count(out, "\n") != 2 || !strings.Contains(out, "10.77.0.") {
		t.Errorf("list printed %q", out)
	}
	must(`{"deny": [{"peers": ["203.0.113.0/24"]}]}`, "policy", "set", "a", "-")
	var info network.Info
	if err := json.Unmarshal([]byte(must("", "--json", "show", "a")), &info); err != nil || len(info.Policy.Deny) != 1 {
		t.Errorf("show: %+v, %v", info, err)
	}
	if out := must("", "show", "a"); !strings.Contains(out, "203.0.113.0/24") {
		t.Errorf("show printed %q", out)
	}
	if _, err := run(`{"denny": []}`, "policy", "set", "a", "-"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a policy with a key that nobody knows: %v", err)
	}
	if out := must("", "check"); out != "" {
		t.Errorf("check printed %q", out)
	}
	served(t, ns, file, filepath.Join(dir, "metrics"))
	if _, err := run("", "down"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("down with a sandbox: %v", err)
	}
	if out := must("", "del", "a"); out != "STATES_BEFORE=0\nSTATES_AFTER=0\n" {
		t.Errorf("del printed %q", out)
	}
	if _, err := run("", "show", "a"); !errdefs.IsNotFound(err) {
		t.Errorf("show what is gone: %v", err)
	}
	if out := must("", "gc"); out != "" {
		t.Errorf("gc printed %q", out)
	}
	if out := must("", "--json", "list"); strings.TrimSpace(out) != "[]" {
		t.Errorf("list printed %q", out)
	}
	must("", "down")
}

// served runs the daemon for as long as it takes to have its metrics.
func served(t *testing.T, ns *os.File, file, socket string) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	// A process of its own: all of its threads have to be in the namespace.
	serve := exec.CommandContext(ctx, os.Args[0], "--config", file, "serve", "--metrics", "unix:"+socket)
	serve.Env = append(os.Environ(), programEnv+"=1")
	serve.Stderr = os.Stderr
	serve.Cancel = func() error { return serve.Process.Signal(unix.SIGTERM) }
	if err := netns.Do(ns, serve.Start); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- serve.Wait() }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := (&http.Client{Transport: transport}).Get("http://network/metrics")
		if err == nil {
			body, rerr := io.ReadAll(resp.Body)
			resp.Body.Close()
			if rerr != nil || !strings.Contains(string(body), "bhyve_network_sandboxes 1\n") {
				t.Errorf("metrics: %s, %v", body, rerr)
			}
			break
		}
		select {
		case <-tick.C:
			continue
		case err = <-done:
			t.Fatalf("serve: %v", err)
		}
	}
	stop()
	// Wait tells of the end of ctx, whatever the exit status.
	<-done
	if code := serve.ProcessState.ExitCode(); code != 0 {
		t.Errorf("serve: exit status %d", code)
	}
}
