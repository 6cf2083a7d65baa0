package sandboxapi

import (
	"context"
	"net"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/sandbox"
)

type noEvents struct{}

func (noEvents) Publish(context.Context, string, events.Event) error { return nil }

// connect serves a shim's Sandbox API without a machine.
func connect(t *testing.T) (api.TTRPCSandboxService, <-chan struct{}) {
	t.Helper()
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	s := New(sandbox.New(context.Background(), nil, noEvents{}, t.TempDir()), func() { close(exited) })
	if err := s.RegisterTTRPC(server); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(context.Background(), l)
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() { client.Close(); server.Close() })
	return api.NewTTRPCSandboxClient(client), exited
}

// A method that is not registered would look like one that is not there yet.
func TestEveryMethodIsServed(t *testing.T) {
	c, _ := connect(t)
	for m := range reflect.TypeFor[api.TTRPCSandboxService]().Methods() {
		f := reflect.ValueOf(c).MethodByName(m.Name)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		out := f.Call([]reflect.Value{reflect.ValueOf(ctx), reflect.New(f.Type().In(1).Elem())})
		if err, _ := out[1].Interface().(error); err != nil && strings.HasSuffix(err.Error(), "desc = method "+m.Name) {
			t.Errorf("%s: %v", m.Name, err)
		}
	}
}

func TestASandboxThatNeverStarts(t *testing.T) {
	c, exited := connect(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	p, err := c.Platform(ctx, &api.PlatformRequest{})
	if err != nil || p.Platform.OS != "linux" || p.Platform.Architecture != runtime.GOARCH {
		t.Errorf("platform: %v, %v", p, err)
	}
	if _, err := c.StartSandbox(ctx, &api.StartSandboxRequest{SandboxID: "pod"}); !errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) {
		t.Errorf("start before the creation: %v", err)
	}
	if _, err := c.CreateSandbox(ctx, &api.CreateSandboxRequest{SandboxID: "pod", BundlePath: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	st, err := c.SandboxStatus(ctx, &api.SandboxStatusRequest{SandboxID: "pod", Verbose: true})
	if err != nil || st.State != "SANDBOX_NOTREADY" || st.Info["state"] != st.State || st.CreatedAt != nil {
		t.Errorf("status: %v, %v", st, err)
	}
	if _, err := c.UpdateSandbox(ctx, &api.UpdateSandboxRequest{SandboxID: "pod"}); !errdefs.IsNotImplemented(errgrpc.ToNative(err)) {
		t.Errorf("update: %v", err)
	}
	if _, err := c.StopSandbox(ctx, &api.StopSandboxRequest{SandboxID: "pod"}); err != nil {
		t.Errorf("stop: %v", err)
	}
	if w, err := c.WaitSandbox(ctx, &api.WaitSandboxRequest{SandboxID: "pod"}); err != nil || w.ExitStatus != 0 || w.ExitedAt == nil {
		t.Errorf("wait: %v, %v", w, err)
	}
	// The answer comes first.
	if _, err := c.ShutdownSandbox(ctx, &api.ShutdownSandboxRequest{SandboxID: "pod"}); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	select {
	case <-exited:
	case <-ctx.Done():
		t.Error("the shim stays")
	}
}

// containerd asks for the end of a shim whose sandbox it could not create.
func TestShutdownOfNoSandbox(t *testing.T) {
	c, exited := connect(t)
	if _, err := c.ShutdownSandbox(context.Background(), &api.ShutdownSandboxRequest{SandboxID: "pod"}); err != nil {
		t.Error(err)
	}
	<-exited
}

func TestSandboxesThatAreRefused(t *testing.T) {
	c, _ := connect(t)
	unknown := t.TempDir()
	if err := config.SaveOptions(unknown, &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: []byte{8, 1}}); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		r    *api.CreateSandboxRequest
		kind func(error) bool
	}{
		"with a root filesystem": {&api.CreateSandboxRequest{Rootfs: []*types.Mount{{}}}, errdefs.IsNotImplemented},
		"with another's options": {&api.CreateSandboxRequest{Options: &anypb.Any{TypeUrl: "x", Value: []byte{1}}}, errdefs.IsInvalidArgument},
		"of another runtime":     {&api.CreateSandboxRequest{BundlePath: unknown}, errdefs.IsInvalidArgument},
	} {
		tc.r.SandboxID = "pod"
		if tc.r.BundlePath == "" {
			tc.r.BundlePath = t.TempDir()
		}
		if _, err := c.CreateSandbox(context.Background(), tc.r); !tc.kind(errgrpc.ToNative(err)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
