package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/bundle"
)

// volumes are the host trees that containers of one machine use together. Each
// is served and mounted once, from its first user to its last: so the users
// share what the guest's kernel keeps of it, such as locks, mapped pages, and
// the sockets and FIFOs that one makes and another opens. The zero value is
// ready to use, and safe for concurrent use.
type volumes struct {
	mu     sync.Mutex
	byName map[string]*volume
	// streams counts those that there have been: a stream's id is used once.
	streams int
}

type volume struct {
	name  string
	users int
	// changed is closed when the volume is mounted, or is not to be had; and
	// made anew, and closed, when it goes.
	changed chan struct{}
	leaving bool

	// Set before changed is closed.
	share *share
	err   error
}

// acquire makes the volume available in the guest. Each success is undone by a
// release.
func (vs *volumes) acquire(ctx context.Context, v *vm, want bundle.Volume) (*volume, error) {
	for {
		vs.mu.Lock()
		vol := vs.byName[want.Name]
		if vol == nil {
			vol = &volume{name: want.Name, users: 1, changed: make(chan struct{})}
			if vs.byName == nil {
				vs.byName = map[string]*volume{}
			}
			vs.byName[want.Name] = vol
			vs.streams++
			stream := fmt.Sprintf("9p/%s/%d", want.Name, vs.streams)
			vs.mu.Unlock()
			return vol, vs.mount(ctx, v, want, stream, vol)
		}
		leaving, changed := vol.leaving, vol.changed
		if !leaving {
			vol.users++
		}
		vs.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			if !leaving {
				vs.release(context.WithoutCancel(ctx), v, vol)
			}
			return nil, fmt.Errorf("volume %s: %w", want.Source, context.Cause(ctx))
		}
		if !leaving {
			return vol, vol.err
		}
	}
}

// mount serves a volume, has the guest mount it, and tells those who wait.
func (vs *volumes) mount(ctx context.Context, v *vm, want bundle.Volume, stream string, vol *volume) error {
	vol.share, vol.err = serveVolume(ctx, v, stream, want, nil)
	if vol.err == nil {
		_, err := v.agent.volumes.Mount(ctx, &agentv1.MountVolumeRequest{Name: want.Name, Stream: stream, ReadOnly: want.ReadOnly})
		if err != nil {
			vol.err = errors.Join(fmt.Errorf("volume %s: %w", want.Source, errgrpc.ToNative(err)), vol.share.close())
		}
	}
	if vol.err != nil {
		vs.mu.Lock()
		delete(vs.byName, want.Name)
		vs.mu.Unlock()
	}
	close(vol.changed)
	return vol.err
}

// release gives up a user's hold. With the last one, the guest writes back and
// unmounts, unless its machine has ended, and the host stops serving.
func (vs *volumes) release(ctx context.Context, v *vm, vol *volume) error {
	vs.mu.Lock()
	vol.users--
	// One that was not to be had is forgotten already.
	if vol.users > 0 || vs.byName[vol.name] != vol {
		vs.mu.Unlock()
		return nil
	}
	mounted, gone := vol.changed, make(chan struct{})
	vol.leaving, vol.changed = true, gone
	vs.mu.Unlock()

	// A user who gave up may be the last one of a volume that is being mounted.
	<-mounted
	var err error
	if vol.err == nil {
		err = vol.unmount(ctx, v)
	}
	vs.mu.Lock()
	if vs.byName[vol.name] == vol {
		delete(vs.byName, vol.name)
	}
	vs.mu.Unlock()
	close(gone)
	return err
}

func (vol *volume) unmount(ctx context.Context, v *vm) error {
	select {
	case <-v.Done():
	default:
		ctx, cancel := context.WithTimeout(ctx, v.agentTimeout)
		defer cancel()
		if _, err := v.agent.volumes.Unmount(ctx, &agentv1.UnmountVolumeRequest{Name: vol.name}); err != nil && !errdefs.IsNotFound(err) {
			// The host's side must go all the same. What the guest had not
			// written back is lost with its machine.
			log.G(ctx).WithError(err).WithField("volume", vol.name).Error("the guest did not let go of the volume")
		}
	}
	return vol.share.close()
}
