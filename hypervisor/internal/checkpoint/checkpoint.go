// Package checkpoint is how a saved machine is kept in a directory: the files
// that a monitor has written, and a manifest, written last, that says what they
// are, what they were made by, and what they can be restored on. A directory
// without a manifest holds no checkpoint.
//
// See docs/decisions/0041-checkpoint-format.md.
package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/durable"
)

// ManifestName is the manifest's file in a checkpoint's directory.
const ManifestName = "manifest.json"

// Format is the revision of Manifest that this package writes and reads.
const Format = 1

// Manifest describes a checkpoint.
type Manifest struct {
	Format int `json:"format"`
	// Machine is what was saved.
	Machine Machine `json:"machine"`
	// Files are the monitor's, in the manifest's own directory.
	Files []File `json:"files"`
}

// Has says whether a file of this name belongs to the checkpoint.
func (m *Manifest) Has(name string) bool {
	return slices.ContainsFunc(m.Files, func(f File) bool { return f.Name == name })
}

// Machine is what has to be the same where a checkpoint is restored. All of it
// is compared; the monitor alone understands it.
type Machine struct {
	// Backend is the name of the backend, Monitor the version of its monitor's
	// program: no promise is made from one build to another.
	Backend string `json:"backend"`
	Monitor string `json:"monitor"`
	// CPU is the processor that the guest has found.
	CPU string `json:"cpu"`
	// VCPUs and MemoryMiB are the machine's size.
	VCPUs     int `json:"vcpus"`
	MemoryMiB int `json:"memory_mib"`
	// Hardware is the rest of what the guest has found: a line a device.
	Hardware []string `json:"hardware"`
	// Kernel and Initrd are the digests of what was booted, Cmdline what it was
	// told.
	Kernel  string `json:"kernel"`
	Initrd  string `json:"initrd"`
	Cmdline string `json:"cmdline"`
}

// File is one file of a checkpoint.
type File struct {
	Name string `json:"name"`
	// Size is in bytes.
	Size int64 `json:"size"`
	// Digest is what Digest says of the file.
	Digest string `json:"digest"`
}

// Write makes the files of dir durable, describes them, and makes them a
// checkpoint. When it returns without error, all of it is on disk.
func Write(dir string, m Machine, files ...string) error {
	manifest := Manifest{Format: Format, Machine: m}
	for _, name := range files {
		f, err := describe(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("checkpoint %s: %w", dir, err)
		}
		manifest.Files = append(manifest.Files, f)
	}
	if err := durable.WriteJSON(filepath.Join(dir, ManifestName), manifest); err != nil {
		return fmt.Errorf("checkpoint %s: %w", dir, err)
	}
	return nil
}

// describe writes a file back and describes it.
func describe(path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return File{}, err
	}
	info, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	digest, err := Digest(path)
	return File{Name: filepath.Base(path), Size: info.Size(), Digest: digest}, err
}

// Exists says whether dir holds a checkpoint, sound or not.
func Exists(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, ManifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Open reads the checkpoint in dir and verifies every file of it. The error is
// errdefs.ErrNotFound where there is none, and errdefs.ErrFailedPrecondition
// where there is one that is not as it was written.
func Open(dir string) (*Manifest, error) {
	m, err := open(dir)
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", dir, err)
	}
	return m, nil
}

func open(dir string) (*Manifest, error) {
	data, err := os.ReadFile(filepath.Join(dir, ManifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	m := &Manifest{}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", ManifestName, err, errdefs.ErrFailedPrecondition)
	}
	if m.Format != Format {
		return nil, fmt.Errorf("its format is %d, this program's %d: %w", m.Format, Format, errdefs.ErrFailedPrecondition)
	}
	for _, f := range m.Files {
		if err := f.verify(dir); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (f File) verify(dir string) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%s %s: %w", f.Name, fmt.Sprintf(format, args...), errdefs.ErrFailedPrecondition)
	}
	if f.Name != filepath.Base(f.Name) || !filepath.IsLocal(f.Name) {
		return bad("is not the name of a file")
	}
	path := filepath.Join(dir, f.Name)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return bad("is missing")
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return bad("is not a file")
	case info.Size() != f.Size:
		return bad("has %d bytes, not %d as it was written", info.Size(), f.Size)
	}
	digest, err := Digest(path)
	if err != nil {
		return err
	}
	if digest != f.Digest {
		return bad("was changed: its digest is %s, not %s", digest, f.Digest)
	}
	return nil
}

// Agree compares the machine that was saved with the one that it is to become.
// A difference is errdefs.ErrFailedPrecondition and named.
func (m Machine) Agree(other Machine) error {
	for _, c := range []struct {
		what       string
		was, would any
	}{
		{"backend", m.Backend, other.Backend},
		{"monitor", m.Monitor, other.Monitor},
		{"processor", m.CPU, other.CPU},
		{"vCPUs", m.VCPUs, other.VCPUs},
		{"MiB of memory", m.MemoryMiB, other.MemoryMiB},
		{"kernel", m.Kernel, other.Kernel},
		{"initramfs", m.Initrd, other.Initrd},
		{"kernel command line", m.Cmdline, other.Cmdline},
	} {
		if c.was != c.would {
			return differ(c.what, c.was, c.would)
		}
	}
	for i := range max(len(m.Hardware), len(other.Hardware)) {
		was, would := at(m.Hardware, i), at(other.Hardware, i)
		if was != would {
			return differ("hardware", was, would)
		}
	}
	return nil
}

func differ(what string, was, would any) error {
	return fmt.Errorf("the checkpoint is of another machine: %s %q, and here %q: %w",
		what, fmt.Sprint(was), fmt.Sprint(would), errdefs.ErrFailedPrecondition)
}

func at(list []string, i int) string {
	if i < len(list) {
		return list[i]
	}
	return "none"
}
