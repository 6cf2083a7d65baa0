package task

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	taskv2 "github.com/containerd/containerd/api/runtime/task/v2"
	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/sandbox"
)

type noEvents struct{}

func (noEvents) Publish(context.Context, string, events.Event) error { return nil }

// serve runs a service for an empty sandbox and returns a client of it, and
// the number of times that the shim was told to exit.
func serve(t *testing.T) (*ttrpc.Client, *atomic.Int32) {
	t.Helper()
	var exits atomic.Int32
	sb := sandbox.New(context.Background(), nil, noEvents{}, t.TempDir())
	t.Cleanup(func() { sb.Close(context.Background()) })
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	if err := New(sb, func() { exits.Add(1) }).RegisterTTRPC(server); err != nil {
		t.Fatal(err)
	}
	address := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), l) }()
	conn, err := net.Dial("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() {
		client.Close()
		server.Close()
		if err := <-served; !errors.Is(err, ttrpc.ErrServerClosed) {
			t.Error(err)
		}
	})
	return client, &exits
}

// answer calls one method of a service with a request that names a container
// which is not there, and returns the code.
func answer(t *testing.T, client any, method string) (codes.Code, string) {
	t.Helper()
	f := reflect.ValueOf(client).MethodByName(method)
	req := reflect.New(f.Type().In(1).Elem())
	if id := req.Elem().FieldByName("ID"); id.IsValid() {
		id.SetString("nobody")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out := f.Call([]reflect.Value{reflect.ValueOf(ctx), req})
	err, _ := out[1].Interface().(error)
	return status.Code(err), fmt.Sprint(err)
}

// Both names of the service know every method of their version, and give the
// same answers.
func TestBothVersionsAnswer(t *testing.T) {
	client, _ := serve(t)
	v2, v3 := taskv2.NewTTRPCTaskClient(client), taskv3.NewTTRPCTaskClient(client)

	want := map[string]codes.Code{
		"State": codes.NotFound, "Start": codes.NotFound, "Delete": codes.NotFound, "Pids": codes.NotFound,
		"Kill": codes.NotFound, "Exec": codes.NotFound, "ResizePty": codes.NotFound, "CloseIO": codes.NotFound,
		"Wait":   codes.NotFound,
		"Create": codes.NotFound, // No bundle.
		"Pause":  codes.NotFound, "Resume": codes.NotFound, "Update": codes.NotFound, "Stats": codes.NotFound,
		"Checkpoint": codes.NotFound,
		"Connect":    codes.OK, "Shutdown": codes.OK,
	}
	for _, iface := range []reflect.Type{reflect.TypeFor[taskv2.TTRPCTaskService](), reflect.TypeFor[taskv3.TTRPCTaskService]()} {
		if iface.NumMethod() != len(want) {
			t.Errorf("%v has %d methods, this test knows %d", iface, iface.NumMethod(), len(want))
		}
	}
	for method, code := range want {
		t.Run(method, func(t *testing.T) {
			for version, c := range map[string]any{"v2": v2, "v3": v3} {
				got, text := answer(t, c, method)
				if got != code {
					t.Errorf("%s: got %v, want %v: %s", version, got, code, text)
				}
			}
		})
	}
}

// A method that is not registered would look like one that is not there yet.
func TestWhatIsNotThereYetSaysSo(t *testing.T) {
	client, _ := serve(t)
	for version, c := range map[string]any{"v2": taskv2.NewTTRPCTaskClient(client), "v3": taskv3.NewTTRPCTaskClient(client)} {
		_, text := answer(t, c, "Checkpoint")
		if strings.HasSuffix(text, "desc = method Checkpoint") {
			t.Errorf("%s: %s", version, text)
		}
	}
	// So that is what the other answer looks like.
	err := client.Call(context.Background(), taskV2, "NoSuchMethod", &taskv3.PauseRequest{}, &taskv3.PauseRequest{})
	if err == nil || !strings.HasSuffix(err.Error(), "desc = method NoSuchMethod") {
		t.Errorf("ttrpc now says of an unregistered method: %v", err)
	}
}

func TestShutdownOfAnEmptySandboxEndsTheShim(t *testing.T) {
	client, exits := serve(t)
	if _, err := taskv3.NewTTRPCTaskClient(client).Shutdown(context.Background(), &taskv3.ShutdownRequest{ID: "c1", Now: true}); err != nil {
		t.Fatal(err)
	}
	if n := exits.Load(); n != 1 {
		t.Errorf("told to exit %d times", n)
	}
}

func TestCreateRefusesAtTheEdge(t *testing.T) {
	client, _ := serve(t)
	task := taskv3.NewTTRPCTaskClient(client)
	options, err := anypb.New(&runcoptions.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := task.Checkpoint(context.Background(), &taskv3.CheckpointTaskRequest{ID: "c1", Options: options}); !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) {
		t.Errorf("checkpoint with options of something else: got %v", err)
	}
	if _, err := task.Create(context.Background(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: t.TempDir()}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("no config.json: got %v", err)
	}
}
