package shim

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// daemon is what containerd is to a shim that has events.
type daemon struct {
	got    chan *eventsapi.ForwardRequest
	answer error
}

func (d *daemon) Forward(_ context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	d.got <- r
	return &emptypb.Empty{}, d.answer
}

// start serves at address until what it returns is called.
func (d *daemon) start(t *testing.T, address string) (stop func()) {
	t.Helper()
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	eventsapi.RegisterTTRPCEventsService(server, d)
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	conns := &keptConns{Listener: l}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(context.Background(), conns)
	}()
	return func() {
		server.Close()
		<-served
		conns.closeAll()
	}
}

// keptConns has the connections of a listener: a ttrpc server that is closed may
// answer on them once more.
type keptConns struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (k *keptConns) Accept() (net.Conn, error) {
	c, err := k.Listener.Accept()
	if err == nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.conns = append(k.conns, c)
	}
	return c, err
}

func (k *keptConns) closeAll() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.conns {
		c.Close()
	}
}

func TestPublisherOutlivesContainerd(t *testing.T) {
	address := filepath.Join(t.TempDir(), "s")
	t.Setenv(ttrpcAddressEnv, address)
	p, err := newPublisher()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "ns"), time.Minute)
	defer cancel()
	publish := func() error { return p.Publish(ctx, "/tasks/oom", &apievents.TaskOOM{ContainerID: "c1"}) }

	if err := publish(); err == nil {
		t.Error("no error without a containerd")
	}
	// One that is about to go may take an event, and not live to say so.
	d := &daemon{got: make(chan *eventsapi.ForwardRequest, 8)}
	for range 2 {
		stop := d.start(t, address)
		if err := publish(); err != nil {
			t.Fatalf("with a containerd that is there again: %v", err)
		}
		if e := (<-d.got).Envelope; e.Namespace != "ns" || e.Topic != "/tasks/oom" || e.Event.GetTypeUrl() != "containerd.events.TaskOOM" || !e.Timestamp.IsValid() {
			t.Errorf("containerd got %v", e)
		}
		stop()
		if err := publish(); err == nil {
			t.Error("no error when containerd has gone")
		}
	}
	// What containerd thinks of an event comes back as it is.
	refusing := &daemon{got: make(chan *eventsapi.ForwardRequest, 8), answer: status.Error(codes.InvalidArgument, "no such topic")}
	defer refusing.start(t, address)()
	if err := publish(); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v, want InvalidArgument", err)
	}
}

func TestPublisherWithoutAnAddress(t *testing.T) {
	t.Setenv(ttrpcAddressEnv, "")
	if _, err := newPublisher(); err == nil {
		t.Error("no error")
	}
}
