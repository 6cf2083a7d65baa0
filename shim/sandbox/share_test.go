package sandbox

import (
	"net"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/ninep"
)

// A host's file system that hangs does not keep a container from its end.
func TestAShareThatHangs(t *testing.T) {
	tree, err := ninep.Dir(t.TempDir(), ninep.Options{})
	must(t, err)
	conn, guest := net.Pipe()
	defer guest.Close()
	sh := &share{stream: "9p/c1/rootfs", tree: tree, conn: conn, served: make(chan struct{}), patience: time.Millisecond}
	if err := sh.close(); !errdefs.IsUnavailable(err) {
		t.Errorf("with a request that hangs: %v", err)
	}
	close(sh.served)
	sh.patience = closeWait
	must(t, sh.close())
}
