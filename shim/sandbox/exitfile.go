package sandbox

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// exitFile is init's exit in the bundle. `delete` answers with it for a shim
// that was killed after its container had already ended.
const exitFile = "exit.json"

type exitRecord struct {
	Status uint32    `json:"status"`
	At     time.Time `json:"at"`
}

func recordExit(bundleDir string, e Exit) error {
	data, err := json.Marshal(exitRecord(e))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bundleDir, exitFile), data, 0o600); err != nil {
		return fmt.Errorf("record exit: %w", err)
	}
	return nil
}

// ReadExit returns the exit that a shim recorded in the bundle in dir, or
// fs.ErrNotExist.
func ReadExit(dir string) (Exit, error) {
	data, err := os.ReadFile(filepath.Join(dir, exitFile))
	if err != nil {
		return Exit{}, err
	}
	var r exitRecord
	if err := json.Unmarshal(data, &r); err != nil {
		return Exit{}, fmt.Errorf("recorded exit: %w", err)
	}
	return Exit(r), nil
}
