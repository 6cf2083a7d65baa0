package network

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// An answer that comes for a sandbox which has gone leaves nothing behind.
func TestResolvedForNobody(t *testing.T) {
	n := &Network{store: store{filepath.Join(t.TempDir(), "bhyve0")}}
	if err := n.store.open(); err != nil {
		t.Fatal(err)
	}
	guest := netip.MustParseAddr("192.0.2.1")
	if _, err := n.store.take("a", guest, guest); err != nil {
		t.Fatal(err)
	}
	err := n.Resolved(t.Context(), guest, "example.org", []netip.Addr{netip.MustParseAddr("198.51.100.1")}, time.Minute)
	if !errdefs.IsNotFound(err) {
		t.Errorf("got %v, want not found", err)
	}
	if _, err := os.Stat(n.store.sandbox("a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the sandbox has a directory: %v", err)
	}
}
