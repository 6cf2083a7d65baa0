package cgroup

import (
	"errors"
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

// missing are the directories of the group at path that are not there.
func missing(path string) ([]string, error) {
	if cgroups.Mode() == cgroups.Unified {
		return absent(filepath.Join(unified, path))
	}
	hierarchies, err := cgroup1.Default()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, h := range hierarchies {
		if p, ok := h.(interface{ Path(string) string }); ok {
			dirs = append(dirs, p.Path(path))
		}
	}
	return absent(dirs...)
}

func absent(dirs ...string) ([]string, error) {
	var list []string
	for _, dir := range dirs {
		_, err := os.Lstat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			list = append(list, dir)
		} else if err != nil {
			return nil, err
		}
	}
	return list, nil
}

func makeV1(path string) (*directory, error) {
	g, err := cgroup1.New(cgroup1.StaticPath(path), &specs.LinuxResources{})
	if err != nil {
		return nil, err
	}
	return &directory{add: func(pid int) error { return g.AddProc(uint64(pid)) }}, nil
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
