//go:build linux

package agent

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

// stubMount is a mount that may be stuck.
type stubMount struct{ err error }

func (m *stubMount) Unmount(context.Context) error { return m.err }
func (m *stubMount) WriteBack() error              { return m.err }

func newTestVolumes(t *testing.T) (*volumes, *stubMount) {
	s, m := newVolumes(newStreams(), newMountTable(nil)), &stubMount{}
	root := t.TempDir()
	s.dir = func(name string) string { return filepath.Join(root, name) }
	s.mount = func(_ context.Context, conn stream, target string, share *agentv1.Share) (unmounter, error) {
		conn.Close()
		if !share.ReadOnly || share.Cache != agentv1.Cache_CACHE_SHARED {
			t.Errorf("mounted as %+v", share)
		}
		if st, err := os.Stat(target); err != nil || !st.IsDir() {
			t.Errorf("mount point: %v", err)
		}
		return m, m.err
	}
	t.Cleanup(s.shares.close)
	return s, m
}

func (s *volumes) mountTest(t *testing.T, name string) error {
	t.Helper()
	_, guest := net.Pipe()
	if err := s.shares.offer("stream", pipeStream{guest}); err != nil {
		t.Fatal(err)
	}
	_, err := s.Mount(t.Context(), &agentv1.MountVolumeRequest{Name: name, Stream: "stream", ReadOnly: true})
	return err
}

func TestVolumeLife(t *testing.T) {
	s, m := newTestVolumes(t)
	if _, err := s.Mount(t.Context(), &agentv1.MountVolumeRequest{Name: "v", Stream: "absent"}); !errdefs.IsNotFound(err) {
		t.Errorf("without a stream: %v", err)
	}
	if err := s.mountTest(t, "../v"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a name that leaves the directory: %v", err)
	}
	s.shares.claim("stream")
	m.err = unix.EIO
	if err := s.mountTest(t, "v"); err == nil {
		t.Error("mounted what cannot be mounted")
	}
	m.err = nil
	if err := s.mountTest(t, "v"); err != nil {
		t.Fatal(err)
	}
	if err := s.mountTest(t, "v"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second volume of that name: %v", err)
	}
	s.shares.claim("stream")
	unmount := func() error {
		_, err := s.Unmount(t.Context(), &agentv1.UnmountVolumeRequest{Name: "v"})
		return err
	}
	m.err = unix.EBUSY
	if err := unmount(); err == nil {
		t.Error("unmounted what is stuck")
	}
	m.err = nil
	for range 2 { // there is none, the second time
		if err := unmount(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(s.dir("v")); err == nil {
		t.Error("the mount point is left")
	}
	if err := s.mountTest(t, "v"); err != nil {
		t.Errorf("the name cannot be used again: %v", err)
	}
}
