//go:build linux

package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd/errdefs"
)

// configName is what a machine is, in its own directory, for who adopts it.
const configName = "machine.json"

func saveConfig(cfg hypervisor.Config) error {
	data, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(cfg.Dir, configName), data, 0o600)
}

// loadConfig returns errdefs.ErrNotFound where there is none.
func loadConfig(dir string) (cfg hypervisor.Config, err error) {
	data, err := os.ReadFile(filepath.Join(dir, configName))
	if errors.Is(err, fs.ErrNotExist) {
		return cfg, fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	if err != nil {
		return cfg, err
	}
	if err := json.Unmarshal(data, &cfg); err != nil {
		return cfg, fmt.Errorf("%s: %w", configName, err)
	}
	return cfg, nil
}

func removeConfig(dir string) error { return remove(filepath.Join(dir, configName)) }

// remove removes a file that need not be there.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
