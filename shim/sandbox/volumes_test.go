package sandbox

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/bundle"
)

// withVolume has a container use dir.
func withVolume(dir string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mnt", Type: "bind", Source: dir, Options: []string{"rbind", "rw"}})
	}
}

// volumesOf is what is mounted in the guest, and how often something ever was.
func volumesOf(a *fakeAgent) (now, ever int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.volumes), a.volumesMounted
}

func (b *bed) wantVolumes(now, ever int) {
	b.t.Helper()
	if n, e := volumesOf(b.agent()); n != now || e != ever {
		b.t.Errorf("%d volumes of %d ever, want %d of %d", n, e, now, ever)
	}
}

func (b *bed) end(c *Container) {
	b.t.Helper()
	b.agent().exit(c.ID, "", 0)
	if _, err := c.Delete(b.within(), ""); err != nil {
		b.t.Fatal(err)
	}
}

func TestAVolumeIsMountedOnceFromItsFirstUserToItsLast(t *testing.T) {
	b := newBed(t)
	dir := t.TempDir()
	first := b.create(b.request("c1", withVolume(dir)))
	second := b.create(b.request("c2", withVolume(dir), withVolume(t.TempDir())))
	b.wantVolumes(2, 2)
	b.end(first)
	b.wantVolumes(2, 2)
	third := b.create(b.request("c3", withVolume(dir)))
	b.wantVolumes(2, 2)
	b.end(second)
	b.wantVolumes(1, 2)
	b.end(third)
	b.wantVolumes(0, 2)
	b.end(b.create(b.request("c4", withVolume(dir))))
	b.wantVolumes(0, 3)
}

func TestAVolumeThatCannotBeMounted(t *testing.T) {
	b := newBed(t)
	dir := t.TempDir()
	b.running("c1")
	b.agent().on("volumes.Mount", refusal(errdefs.ErrUnavailable))
	if _, err := b.Create(b.within(), b.request("c2", withVolume(dir))); !errdefs.IsUnavailable(err) {
		t.Errorf("got %v", err)
	}
	b.agent().on("volumes.Mount", nil)
	b.create(b.request("c2", withVolume(dir)))
	b.wantVolumes(1, 1)
}

// A guest that keeps a volume does not keep the host from giving it back.
func TestAVolumeThatTheGuestKeeps(t *testing.T) {
	b := newBed(t)
	dir := t.TempDir()
	c := b.create(b.request("c1", withVolume(dir)))
	b.agent().on("volumes.Unmount", refusal(errdefs.ErrUnavailable))
	b.end(c)
	if len(b.vm.volumes.byName) != 0 {
		t.Error("the host has the volume still")
	}
}

// Containers that come and go at the same time find a volume mounted, each.
func TestVolumesUnderContention(t *testing.T) {
	b := newBed(t)
	dir := t.TempDir()
	b.running("keeper")
	v := b.vm
	want := func() error {
		vol, err := v.volumes.acquire(b.within(), v, bundle.Volume{Name: "v-1", Source: dir})
		if err != nil {
			return err
		}
		if now, _ := volumesOf(b.agent()); now != 1 {
			return errors.New("not mounted")
		}
		return v.volumes.release(context.Background(), v, vol)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if err := want(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if now, _ := volumesOf(b.agent()); now != 0 || len(v.volumes.byName) != 0 {
		t.Errorf("%d volumes are left", now)
	}
}
