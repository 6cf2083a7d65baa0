//go:build linux || freebsd

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// TestShim talks to the shim without containerd in between, which would refuse
// these bundles before the shim sees them.
func TestShim(t *testing.T) {
	for name, config := range map[string]string{
		"empty":         ``,
		"cut off":       `{"ociVersion": "1.0.2", "proc`,
		"not an object": `[]`,
		"wrong type":    `{"ociVersion": "1.0.2", "process": 5}`,
	} {
		t.Run("malformed config, "+name, func(t *testing.T) {
			testShimRefuses(newRig(t, lab.RuntimeBhyve), config)
		})
	}
}

func testShimRefuses(r *rig, config string) {
	id := r.newID()
	bundle := filepath.Join(r.hostDir(), id)
	if err := os.MkdirAll(filepath.Join(bundle, "rootfs"), 0o700); err != nil {
		r.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(config), 0o600); err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.ctx, refusalTime)
	defer cancel()
	r.logPipe(bundle)

	client, closed := r.startShim(ctx, id, bundle)
	defer client.Close()
	service := task.NewTTRPCTaskClient(client)
	_, err := service.Create(ctx, &task.CreateTaskRequest{ID: id, Bundle: bundle})
	if err = errgrpc.ToNative(err); !errdefs.IsInvalidArgument(err) {
		r.Errorf("create gave %v, want an invalid argument", err)
	}
	// It may be gone before its answer is, as containerd knows.
	if _, err := service.Shutdown(ctx, &task.ShutdownRequest{ID: id}); err != nil && !errors.Is(err, ttrpc.ErrClosed) {
		r.Errorf("shutdown: %v", err)
	}
	select {
	case <-closed:
	case <-ctx.Done():
		r.Error("the shim does not end")
	}
	r.shim(ctx, id, bundle, "delete")
}

// logPipe makes the named pipe that a shim logs to, and shows what it logged if
// the test fails.
func (r *rig) logPipe(bundle string) {
	r.Helper()
	path := filepath.Join(bundle, "log")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		r.Fatal(err)
	}
	// Open for both, so that it does not wait for the shim, nor end with it.
	pipe, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		r.Fatal(err)
	}
	var log bytes.Buffer
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		io.Copy(&log, pipe) // ends when the pipe is closed below
	}()
	r.Cleanup(func() {
		pipe.Close()
		<-copied
		if r.Failed() {
			r.Logf("the shim's log:\n%s", &log)
		}
	})
}

// startShim starts a shim as a containerd before version 2.3 does, which takes
// no more than flags. The channel is closed when the shim has hung up.
func (r *rig) startShim(ctx context.Context, id, bundle string) (*ttrpc.Client, <-chan struct{}) {
	r.Helper()
	out := r.shim(ctx, id, bundle, "start")
	var params struct {
		Address string `json:"address"`
	}
	if err := json.Unmarshal(out, &params); err != nil {
		r.Fatalf("the shim's address %q: %v", out, err)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(params.Address, "unix://"))
	if err != nil {
		r.Fatal(err)
	}
	closed := make(chan struct{})
	return ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(closed) })), closed
}

// shim runs the shim's program with an action to its end.
func (r *rig) shim(ctx context.Context, id, bundle, action string) []byte {
	r.Helper()
	cmd := r.Shim(ctx, "-namespace", r.Namespace, "-id", id, "-address", r.Address(), "-bundle", bundle, action)
	cmd.Dir = bundle
	cmd.Stdin = new(bytes.Buffer)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		r.Fatalf("shim %s: %v", action, err)
	}
	return out
}
