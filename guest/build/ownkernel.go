package build

import (
	"bytes"
	"fmt"
	"os"
	"regexp"

	"github.com/containerd/errdefs"
)

// ownKernel is a kernel that comes from a file and not from a package. Its
// methods may be called on nil, which is the absence of one.
type ownKernel struct {
	data []byte
	// release is what uname -r will say.
	release string
}

// banner is linux_banner (init/version-timestamp.c in the kernel's source), by
// which every kernel names its release.
var banner = regexp.MustCompile(`Linux version ([0-9][^ \x00]*) \(`)

// readKernel reads a vmlinux. One that no monitor could start is
// errdefs.ErrInvalidArgument.
func readKernel(path string) (*ownKernel, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	if err := checkPVH(data); err != nil {
		return nil, fmt.Errorf("kernel %s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	m := banner.FindSubmatch(data)
	if m == nil {
		return nil, fmt.Errorf("kernel %s: it does not name its release: %w", path, errdefs.ErrInvalidArgument)
	}
	return &ownKernel{data: data, release: string(bytes.Clone(m[1]))}, nil
}

func (k *ownKernel) digest() string {
	if k == nil {
		return ""
	}
	return digest(k.data)
}

// baseName is the directory of the cache that keeps bases with this kernel:
// they do not push each other out.
func (k *ownKernel) baseName() string {
	if k == nil {
		return "base"
	}
	return "base-own-kernel"
}
