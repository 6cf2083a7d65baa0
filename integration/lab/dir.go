package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// labDir is a world's directory on disk. It is locked for as long as a process
// of the world, or the one that waits outside, is alive.
type labDir struct {
	path string
	lock *os.File
}

// ParentEnv names the directory that labs make theirs in; by default it is
// .cache/lab of the checkout. It has to be on a file system that can hold the
// upper directory of an overlay.
const ParentEnv = "BHYVE_LAB_PARENT"

func parentDir() (string, error) {
	if dir := os.Getenv(ParentEnv); dir != "" {
		return dir, nil
	}
	repo, err := Repo()
	if err != nil {
		return "", err
	}
	return filepath.Join(repo, ".cache", "lab"), nil
}

// newDir makes and locks a directory, after removing those of labs that were
// killed.
func newDir() (*labDir, error) {
	parent, err := parentDir()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, err
	}
	// Making a directory and locking it are two steps: the parent's lock keeps
	// another lab from sweeping in between.
	plock, err := lockDir(parent, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer plock.Close()
	if err := sweep(parent); err != nil {
		return nil, fmt.Errorf("sweep killed labs: %w", err)
	}
	// The name is also the containerd namespace and the cgroup of the lab.
	path, err := os.MkdirTemp(parent, "lab-")
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(path, unix.LOCK_EX)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return &labDir{path: path, lock: lock}, nil
}

func (d *labDir) remove() error {
	defer d.lock.Close()
	return removeLab(d.path)
}

// sweep removes every unlocked lab below parent.
func sweep(parent string) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(parent, e.Name())
		lock, err := lockDir(path, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, fs.ErrNotExist):
		case err != nil:
			errs = append(errs, err)
		default:
			errs = append(errs, removeLab(path))
			lock.Close()
		}
	}
	return errors.Join(errs...)
}

func removeLab(path string) error {
	return errors.Join(removeCgroups(filepath.Base(path)), os.RemoveAll(path))
}

func lockDir(path string, how int) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "flock", Path: path, Err: err}
	}
	return f, nil
}
