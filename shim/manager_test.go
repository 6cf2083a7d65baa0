package shim

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
)

func TestSocketPathsThatTheSystemTakes(t *testing.T) {
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	at := func(n int) string { return filepath.Join(dir, strings.Repeat("x", n-len(dir)-1)) }
	l, err := net.Listen("unix", at(maxSocketPath))
	if err != nil {
		t.Fatalf("the longest path: %v", err)
	}
	l.Close()
	if err := checkSocketPath(at(maxSocketPath)); err != nil {
		t.Error(err)
	}
	if l, err := net.Listen("unix", at(maxSocketPath+1)); err == nil {
		l.Close()
		t.Error("the system takes a longer one")
	}
}

func TestStartSaysThatTheSocketPathIsTooLong(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("config.json", []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Manager{}.Start(namespaces.WithNamespace(context.Background(), "ns"),
		&bootapi.BootstrapParams{InstanceID: "c1", SocketDir: proto.String("/" + strings.Repeat("long", 12))})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "state directory") {
		t.Errorf("got %v", err)
	}
}
