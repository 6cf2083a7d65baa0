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

// portDir has a symbolic link for each published port, to the id of the sandbox
// that has it, where the packet filter does not keep two from the same port. As
// with addresses, the file system makes one at once or not at all. Only a sandbox
// with a record has any.
const portDir = "ports"

func (s store) port(p policy.Published) string {
	return filepath.Join(s.dir, portDir, fmt.Sprintf("%s-%d", policy.ProtocolName(p.Protocol), p.Host))
}

// takePorts makes ports the sandbox's, those that it has included.
// errdefs.ErrAlreadyExists names one that is another's; then it has no more than
// before.
func (s store) takePorts(id string, ports []policy.Published) (err error) {
	if len(ports) == 0 {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(s.dir, portDir), 0o700); err != nil {
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
		err := os.Symlink(id, path)
		if owner, rerr := os.Readlink(path); errors.Is(err, fs.ErrExist) && rerr == nil {
			if owner == id {
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
	entries, err := os.ReadDir(filepath.Join(s.dir, portDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("network: state: %w", err)
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(s.dir, portDir, e.Name())
		if owner, err := os.Readlink(path); err != nil || owner != id {
			continue
		}
		if !slices.ContainsFunc(keep, func(p policy.Published) bool { return s.port(p) == path }) {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}
