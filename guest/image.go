// Package guest is the guest image as the host's programs find it at run time:
// a kernel, an initramfs whose /init is the agent, and a manifest that says
// what they are. Package guest/build makes one.
package guest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
)

// ManifestName is the manifest's file in an image directory. It is written
// last, so that a directory which has one has all of its image.
const ManifestName = "manifest.json"

// Format is the revision of Manifest that this package writes and reads.
const Format = 1

// Manifest describes an image. Everything in it follows from the inputs alone,
// so that two builds of the same inputs have equal manifests.
type Manifest struct {
	Format int `json:"format"`
	// Arch is the guest's architecture in GOARCH terms.
	Arch string `json:"arch"`
	// Protocol is the agentproto.Version that the image was built for.
	Protocol uint32 `json:"protocol"`
	// KernelRelease is what the guest's uname -r says.
	KernelRelease string `json:"kernel_release"`
	// Kernel is an uncompressed ELF vmlinux with a PVH entry point.
	Kernel File `json:"kernel"`
	// Initrd is a newc cpio archive.
	Initrd File `json:"initrd"`
	// Inputs is what the image was made from.
	Inputs Inputs `json:"inputs"`
}

// File is one file of an image, in the manifest's own directory.
type File struct {
	Name string `json:"name"`
	// Size is in bytes.
	Size int64 `json:"size"`
	// SHA256 is in lower-case hexadecimal.
	SHA256 string `json:"sha256"`
}

// Inputs are the SHA-256 digests, in lower-case hexadecimal, of what an image
// is made from.
type Inputs struct {
	Lock  string `json:"lock"`
	Agent string `json:"agent"`
	// Kernel is empty where the kernel is the lock file's.
	Kernel string `json:"kernel,omitempty"`
}

// Image is a guest image on this host.
type Image struct {
	// Dir is the image's directory, Kernel and Initrd the paths of its files.
	Dir, Kernel, Initrd string
	Manifest            Manifest
}

const rebuildHint = "build it with `make guest`"

// Open finds the image in dir and checks that this program can use it. It
// compares sizes but reads no file other than the manifest: it is called at
// the start of each sandbox (see Verify).
//
// The error is errdefs.ErrNotFound when there is no image or a part of it is
// missing, and errdefs.ErrFailedPrecondition when there is one that does not
// fit: damaged, for another architecture, or made for another revision of the
// agent's protocol.
func Open(dir string) (*Image, error) {
	path := filepath.Join(dir, ManifestName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no guest image in %s (%s): %w", dir, rebuildHint, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("guest image: %w", err)
	}
	img := &Image{Dir: dir}
	m := &img.Manifest
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("guest image %s: %w: %w", path, err, errdefs.ErrFailedPrecondition)
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("guest image %s: %w (%s): %w", path, err, rebuildHint, errdefs.ErrFailedPrecondition)
	}
	if img.Kernel, err = locate(dir, m.Kernel); err != nil {
		return nil, err
	}
	if img.Initrd, err = locate(dir, m.Initrd); err != nil {
		return nil, err
	}
	return img, nil
}

func (m *Manifest) check() error {
	if m.Format != Format {
		return fmt.Errorf("format is %d, want %d", m.Format, Format)
	}
	if m.Arch != runtime.GOARCH {
		return fmt.Errorf("it is for %q, this host is %q", m.Arch, runtime.GOARCH)
	}
	if m.Protocol != agentproto.Version {
		return fmt.Errorf("its agent speaks protocol %d, this program %d", m.Protocol, agentproto.Version)
	}
	for _, f := range []File{m.Kernel, m.Initrd} {
		if f.Name == "" || f.Name != filepath.Base(f.Name) || !filepath.IsLocal(f.Name) {
			return fmt.Errorf("%q is not the name of a file", f.Name)
		}
	}
	return nil
}

func locate(dir string, f File) (string, error) {
	path := filepath.Join(dir, f.Name)
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("guest image: %s is missing (%s): %w", path, rebuildHint, errdefs.ErrNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("guest image: %w", err)
	}
	if !st.Mode().IsRegular() || st.Size() != f.Size {
		return "", fmt.Errorf("guest image: %s has %d bytes, its manifest says %d (%s): %w",
			path, st.Size(), f.Size, rebuildHint, errdefs.ErrFailedPrecondition)
	}
	return path, nil
}

// Verify reads the image's files and compares their digests with the
// manifest's. A difference is errdefs.ErrFailedPrecondition.
func (img *Image) Verify() error {
	for _, f := range []File{img.Manifest.Kernel, img.Manifest.Initrd} {
		path := filepath.Join(img.Dir, f.Name)
		sum, err := digest(path)
		if err != nil {
			return fmt.Errorf("guest image: %w", err)
		}
		if sum != f.SHA256 {
			return fmt.Errorf("guest image: the sha256 of %s is %s, its manifest says %s: %w",
				path, sum, f.SHA256, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
