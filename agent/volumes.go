//go:build linux

package agent

import (
	"context"
	"errors"
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
	shares *streams
	// dir and mount are the real ones but in tests.
	dir   func(name string) string
	mount func(ctx context.Context, conn stream, target string, s *agentv1.Share) (unmounter, error)

	mu     sync.Mutex
	byName map[string]*volume
}

// volume is a mounted one, or with mounted nil one that is being mounted or
// unmounted.
type volume struct{ mounted unmounter }

func newVolumes(shares *streams) *volumes {
	return &volumes{
		shares: shares,
		dir:    agentproto.VolumeDir,
		mount:  mountShare,
		byName: map[string]*volume{},
	}
}

// Mount implements agentv1.VolumesService.
func (s *volumes) Mount(ctx context.Context, r *agentv1.MountVolumeRequest) (*emptypb.Empty, error) {
	if err := identifiers.Validate(r.Name); err != nil {
		return nil, err
	}
	conn, err := s.shares.claim(r.Stream)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", r.Name, err)
	}
	v := &volume{}
	s.mu.Lock()
	_, taken := s.byName[r.Name]
	if !taken {
		s.byName[r.Name] = v
	}
	s.mu.Unlock()
	if taken {
		conn.Close()
		return nil, fmt.Errorf("volume %s: %w", r.Name, errdefs.ErrAlreadyExists)
	}

	mounted, err := s.mountAt(ctx, conn, r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.byName, r.Name)
		return nil, fmt.Errorf("volume %s: %w", r.Name, err)
	}
	v.mounted = mounted
	return &emptypb.Empty{}, nil
}

// mountAt takes conn over.
func (s *volumes) mountAt(ctx context.Context, conn stream, r *agentv1.MountVolumeRequest) (unmounter, error) {
	target := s.dir(r.Name)
	// Searchable by all, since a container's root may be another user's.
	if err := os.MkdirAll(target, 0o711); err != nil {
		conn.Close()
		return nil, err
	}
	m, err := s.mount(ctx, conn, target, &agentv1.Share{Stream: r.Stream, ReadOnly: r.ReadOnly})
	if err != nil {
		return nil, errors.Join(err, os.Remove(target))
	}
	return m, nil
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
