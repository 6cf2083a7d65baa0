package sandbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/durable"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/ninep"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
)

// What is in the directory of a saved sandbox: its machine, and what of it is not
// in the machine's memory, written last. A directory without that holds none.
//
// See docs/decisions/0043-saved-sandboxes.md.
const (
	savedFile       = "sandbox.json"
	savedMachineDir = "machine"
	// savedFormat is the revision of savedSandbox.
	savedFormat = 1
)

// savedSandbox is what of a sandbox is not in its machine's memory.
type savedSandbox struct {
	Format int `json:"format"`
	// Namespace is containerd's. The guest's agent belongs to one.
	Namespace string `json:"namespace"`
	// Size and KernelArgs are the machine's.
	Size       config.Size `json:"size"`
	KernelArgs []string    `json:"kernel_args,omitempty"`
	// MAC is the address of the containers' network interface by which the guest knows
	// it, nil for a machine without one.
	MAC net.HardwareAddr `json:"mac,omitempty"`
	// Events is the number of the last of the guest's events that was seen.
	Events uint64 `json:"events"`
	// Name is containerd's for the container, as it was saved.
	Name string `json:"name"`
	// Container is the guest's id for the only container there is.
	Container string `json:"container"`
	// Paused is true if it was by its client, and not for being saved.
	Paused   bool `json:"paused,omitempty"`
	Terminal bool `json:"terminal,omitempty"`
	// Streams are the names of its standard streams.
	Streams []string `json:"streams,omitempty"`
	// Roots are its own trees by their targets, Volumes those that it shares by
	// their names.
	Roots   map[string]savedTree `json:"roots"`
	Volumes map[string]savedTree `json:"volumes,omitempty"`
	// VolumeStreams is how many streams of volumes there have been.
	VolumeStreams int `json:"volume_streams,omitempty"`

	// dir is where it was read from.
	dir string
}

// savedTree is a tree that the guest has mounted.
type savedTree struct {
	// Stream is the id of the stream that it is served on.
	Stream  string       `json:"stream"`
	Session *ninep.Saved `json:"session"`
}

// envelope is what is in savedFile: nothing is believed that is not as it was
// written.
type envelope struct {
	SHA256  string          `json:"sha256"`
	Sandbox json.RawMessage `json:"sandbox"`
}

func (s *savedSandbox) machine() string { return filepath.Join(s.dir, savedMachineDir) }

// write makes the directory one of a saved sandbox. All of it is on disk then.
func (s *savedSandbox) write(dir string) error {
	sandbox, err := json.Marshal(s)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(sandbox)
	data, err := json.Marshal(envelope{SHA256: hex.EncodeToString(sum[:]), Sandbox: sandbox})
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, savedFile), data, 0o600)
}

// readSaved reads what write has written, and leaves the machine to who restores
// it. What is no saved sandbox, or not as it was written, is
// errdefs.ErrFailedPrecondition.
func readSaved(dir string) (*savedSandbox, error) {
	data, err := os.ReadFile(filepath.Join(dir, savedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("checkpoint %s: no saved sandbox of this runtime's is there: %w", dir, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("checkpoint %s: %s: %s: %w", dir, savedFile, fmt.Sprintf(format, args...), errdefs.ErrFailedPrecondition)
	}
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, bad("%v", err)
	}
	if sum := sha256.Sum256(e.Sandbox); e.SHA256 != hex.EncodeToString(sum[:]) {
		return nil, bad("it was changed: its digest is %x, not %s", sum, e.SHA256)
	}
	s := &savedSandbox{dir: dir}
	decoder := json.NewDecoder(bytes.NewReader(e.Sandbox))
	if err := decoder.Decode(s); err != nil {
		return nil, bad("%v", err)
	}
	if s.Format != savedFormat {
		return nil, bad("its format is %d, this shim's %d", s.Format, savedFormat)
	}
	return s, nil
}

// clearSaved removes what a save that failed has left in dir.
func clearSaved(dir string) error {
	err := os.Remove(filepath.Join(dir, savedFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(filepath.Join(dir, savedMachineDir)))
}

// save is what the guest knows of the tree.
func (s *share) save() (savedTree, error) {
	session, err := s.tree.Save()
	if err != nil {
		return savedTree{}, err
	}
	return savedTree{Stream: s.stream, Session: session}, nil
}

// vacantFor makes sure that dir is there and holds no saved sandbox, and makes
// the place of the machine in it.
func vacantFor(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, name := range []string{savedFile, savedMachineDir} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%s has a %s: %w", dir, name, errdefs.ErrAlreadyExists)
		}
	}
	return os.Mkdir(filepath.Join(dir, savedMachineDir), 0o700)
}
