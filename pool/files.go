package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The pool's files. Below Options.Root, which survives a reboot:
//
//	templates/NAME.json
//	checkpoints/ID/manifest.json, machine/...
//
// and below Options.State, which need not:
//
//	lock
//	entries/ID/entry.json, receipts-N, machine/...
const (
	templatesDir   = "templates"
	checkpointsDir = "checkpoints"
	entriesDir     = "entries"
	lockName       = "lock"
	jsonSuffix     = ".json"

	// unfinished begins the names of checkpoints that are being made.
	unfinished = "making-"
)

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// lockPatience is how long a lock may outlive its holder: one that was killed
// while it started a process is gone before that process has its own program, and
// has let go of what was open.
const lockPatience = 2 * time.Second

// lock takes the lock file at path, of which there is one holder on the host.
// The file stays; the lock goes with the process.
func lock(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	tick := time.NewTicker(lockPatience / 100)
	defer tick.Stop()
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("%s is locked: a pool daemon runs already", path)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// names are those of the entries of a directory that are not temporary files.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			list = append(list, e.Name())
		}
	}
	return list, nil
}

// removeFile removes a file that may be gone already.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
