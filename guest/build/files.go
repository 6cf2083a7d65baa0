package build

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/durable"
)

// writeSealed writes files to dir and then the seal, which says that they
// belong together and are whole. While they do not, there is no seal.
func writeSealed(dir, seal string, sealText []byte, files map[string][]byte) error {
	if err := os.Remove(filepath.Join(dir, seal)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for name, data := range files {
		if err := durable.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return durable.WriteFile(filepath.Join(dir, seal), sealText, 0o644)
}

// baseCache keeps the last base that was made, so that a new agent does not
// cost the unpacking of a kernel package: seconds, where the rest takes less
// than one.
type baseCache struct {
	dir  string
	seal baseSeal
}

// baseSeal is what the base was made by and from.
type baseSeal struct {
	Lock    string `json:"lock"`    // sha256
	Program string `json:"program"` // sha256
	Kernel  string `json:"kernel"`  // sha256 of one of our own, or empty
	Release string `json:"release"`
}

const (
	baseSealName    = "base.json"
	baseArchiveName = "base.cpio"
)

// openBaseCache makes dir if need be. The key to what is in it includes this
// program itself: it, too, decides what is in a base.
func openBaseCache(dir string, lock *Lock, own *ownKernel) (*baseCache, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("guest image: %w", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("guest image: %w", err)
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		return nil, fmt.Errorf("guest image: %w", err)
	}
	return &baseCache{dir: dir, seal: baseSeal{Lock: digest(lock.Format()), Program: digest(program), Kernel: own.digest()}}, nil
}

// load returns nil where there is no base of this lock file and program.
func (c *baseCache) load() *base {
	text, err := os.ReadFile(filepath.Join(c.dir, baseSealName))
	if err != nil {
		return nil
	}
	var have baseSeal
	if json.Unmarshal(text, &have) != nil || have.Lock != c.seal.Lock || have.Program != c.seal.Program || have.Kernel != c.seal.Kernel {
		return nil
	}
	kernel, kerr := os.ReadFile(filepath.Join(c.dir, kernelName))
	archive, aerr := os.ReadFile(filepath.Join(c.dir, baseArchiveName))
	if kerr != nil || aerr != nil {
		return nil
	}
	return &base{release: have.Release, kernel: kernel, archive: archive}
}

func (c *baseCache) save(b *base) error {
	seal := c.seal
	seal.Release = b.release
	text, err := json.Marshal(seal)
	if err != nil {
		return fmt.Errorf("guest image: %w", err)
	}
	err = writeSealed(c.dir, baseSealName, text, map[string][]byte{kernelName: b.kernel, baseArchiveName: b.archive})
	if err != nil {
		return fmt.Errorf("guest image: %w", err)
	}
	return nil
}
