//go:build linux

package agent

import (
	"context"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

// volumes is the Volumes service. A tree that several containers use is mounted
// once: then they share its cache, its locks, and the sockets and FIFOs in it,
// of which two mounts of one tree know nothing.
type volumes struct {
	mounter
	// dir is the real one but in tests.
	dir func(name string) string

	mu     sync.Mutex
	byName map[string]*volume
}

// volume is a mounted one, or with mounted nil one that is being mounted or
// unmounted.
type volume struct{ mounted unmounter }

func newVolumes(shares *streams, mounts *mountTable) *volumes {
	return &volumes{
		mounter: mounter{shares: shares, mount: mounts.mount},
		dir:     agentproto.VolumeDir,
		byName:  map[string]*volume{},
	}
}

// Mount implements agentv1.VolumesService.
func (s *volumes) Mount(ctx context.Context, r *agentv1.MountVolumeRequest) (*emptypb.Empty, error) {
	if err := identifiers.Validate(r.Name); err != nil {
		return nil, err
	}
	v := &volume{}
	s.mu.Lock()
	_, taken := s.byName[r.Name]
	if !taken {
		s.byName[r.Name] = v
	}
	s.mu.Unlock()
	if taken {
		return nil, fmt.Errorf("volume %s: %w", r.Name, errdefs.ErrAlreadyExists)
	}

	mounted, err := s.mountAt(ctx, s.dir(r.Name), &agentv1.Share{Stream: r.Stream, ReadOnly: r.ReadOnly})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.byName, r.Name)
		return nil, fmt.Errorf("volume %s: %w", r.Name, err)
	}
	v.mounted = mounted
	return &emptypb.Empty{}, nil
}

// Unmount implements agentv1.VolumesService.
func (s *volumes) Unmount(ctx context.Context, r *agentv1.UnmountVolumeRequest) (*emptypb.Empty, error) {
	if err := identifiers.Validate(r.Name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	v := s.byName[r.Name]
	var m unmounter
	if v != nil {
		m, v.mounted = v.mounted, nil
	}
	s.mu.Unlock()
	switch {
	case v == nil:
		return &emptypb.Empty{}, nil
	case m == nil:
		return nil, fmt.Errorf("volume %s: another request is at work on it: %w", r.Name, errdefs.ErrUnavailable)
	}

	err := m.Unmount(ctx)
	if err == nil {
		// One that is left is the next one's mount point.
		os.Remove(s.dir(r.Name))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		v.mounted = m
		return nil, fmt.Errorf("volume %s: %w", r.Name, err)
	}
	delete(s.byName, r.Name)
	return &emptypb.Empty{}, nil
}
