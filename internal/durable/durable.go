// Package durable replaces files so that neither a reader nor a crash finds a
// part of one.
//
// What is written goes to a new file beside the old one, is synchronised,
// renamed over it, and then the directory is synchronised. So of the writer's
// death at any point survives the old file or the new one, and of the host's
// too; and what has returned without an error survives both. What a death may
// leave is the new file under its own name: it begins with a dot and the name of
// the file that it was to replace, and nothing reads it.
package durable

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile makes the file at path one with data and exactly the permissions
// perm. The directory has to exist. On an error the file is the old one; the
// exception is one of the last step, the directory's synchronisation, which
// leaves the new one, of which a crash of the host may make the old.
//
// Writers of one path at the same time need no lock: one of them is the last.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	dir, name := filepath.Split(path)
	f, err := os.CreateTemp(dir, "."+name+"-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// WriteJSON is WriteFile for v, indented, for its owner alone.
func WriteJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(path, append(data, '\n'), 0o600)
}

// SyncDir makes the names in dir durable: files that were made, renamed or
// removed there. "" is the working directory.
func SyncDir(dir string) error {
	f, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
