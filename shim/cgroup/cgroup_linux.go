package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// unified is where a host that has only version 2 has it.
const unified = "/sys/fs/cgroup"

// makeAttempts is how often a group is made whose parent goes away meanwhile.
const makeAttempts = 3

// directory is a group: a directory in each hierarchy of version 1, or the one
// of version 2.
type directory struct {
	add func(pid int) error
}

func available() bool { return cgroups.Mode() != cgroups.Unavailable }

func makeDirectory(path string) (d *directory, err error) {
	for range makeAttempts {
		if cgroups.Mode() == cgroups.Unified {
			d, err = makeV2(unified, path)
		} else {
			d, err = makeV1(path)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return d, err
		}
	}
	return nil, err
}

func removeDirectory(path string) error {
	if cgroups.Mode() == cgroups.Unified {
		return removeV2(unified, path)
	}
	return removeV1(path)
}

func makeV1(path string) (*directory, error) {
	g, err := cgroup1.New(cgroup1.StaticPath(path), &specs.LinuxResources{})
	if err != nil {
		return nil, err
	}
	return &directory{add: func(pid int) error { return g.AddProc(uint64(pid)) }}, nil
}

func removeV1(path string) error {
	g, err := cgroup1.Load(cgroup1.StaticPath(path))
	if errors.Is(err, cgroup1.ErrCgroupDeleted) {
		return nil
	}
	if err != nil {
		return err
	}
	return g.Delete()
}

func makeV2(mountpoint, path string) (*directory, error) {
	g, err := cgroup2.NewManager(mountpoint, path, &cgroup2.Resources{})
	if err != nil {
		return nil, err
	}
	// So that the host can account for it; without, the limits of the groups
	// above hold all the same.
	controllers, err := g.RootControllers()
	if err == nil && len(controllers) > 0 {
		err = g.ToggleControllers(controllers, cgroup2.Enable)
	}
	if err != nil {
		log.L.WithError(err).WithField("cgroup", path).Debug("not every controller accounts for the machine")
	}
	return &directory{add: func(pid int) error { return g.AddProc(uint64(pid)) }}, nil
}

func removeV2(mountpoint, path string) error {
	if _, err := os.Stat(filepath.Join(mountpoint, path)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	g, err := cgroup2.Load(path, cgroup2.WithMountpoint(mountpoint))
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	return g.Delete()
}
