package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// portDir has a symbolic link for each published port, to the sandbox that has it,
// where the packet filter does not keep two from the same port. As with addresses,
// the file system makes one at once or not at all. Only a sandbox with a record has
// any. It is one for all networks of a host: no bridge has such a name.
const portDir = ".ports"

func (s store) ports() string { return filepath.Join(filepath.Dir(s.dir), portDir) }

func (s store) port(p policy.Published) string {
	return filepath.Join(s.ports(), fmt.Sprintf("%s-%d", policy.ProtocolName(p.Protocol), p.Host))
}

// claimant is what the link of a sandbox's port says.
func (s store) claimant(id string) string { return filepath.Base(s.dir) + "/" + id }

// takePorts makes ports the sandbox's, those that it has included.
// errdefs.ErrAlreadyExists names one that is another's; then it has no more than
// before.
func (s store) takePorts(id string, ports []policy.Published) (err error) {
	if len(ports) == 0 {
		return nil
	}
	if err := os.MkdirAll(s.ports(), 0o700); err != nil {
		return fmt.Errorf("network: state: %w", err)
	}
	var taken []string
	defer func() {
		if err != nil {
			for _, path := range taken {
				err = errors.Join(err, os.Remove(path))
			}
		}
	}()
	for _, p := range ports {
		path := s.port(p)
		err := os.Symlink(s.claimant(id), path)
		if owner, rerr := os.Readlink(path); errors.Is(err, fs.ErrExist) && rerr == nil {
			if owner == s.claimant(id) {
				continue
			}
			return fmt.Errorf("port %d of the host is published by %s: %w", p.Host, owner, errdefs.ErrAlreadyExists)
		}
		if err != nil {
			return fmt.Errorf("port %d of the host: %w", p.Host, err)
		}
		taken = append(taken, path)
	}
	return nil
}

// freePorts gives back the sandbox's ports but for those to keep.
func (s store) freePorts(id string, keep []policy.Published) error {
	entries, err := os.ReadDir(s.ports())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("network: state: %w", err)
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(s.ports(), e.Name())
		if owner, err := os.Readlink(path); err != nil || owner != s.claimant(id) {
			continue
		}
		if !slices.ContainsFunc(keep, func(p policy.Published) bool { return s.port(p) == path }) {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}
