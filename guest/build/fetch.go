package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// debianArch is Debian's name of the only architecture that images are built
// for, goArch Go's.
const (
	debianArch = "amd64"
	goArch     = "amd64"
)

// fetcher gets packages with apt, which checks them against Debian's signed
// index, and keeps them in a directory.
type fetcher struct {
	cache string
	logf  func(format string, args ...any)
	// refreshed is set once the package index has been brought up to date.
	refreshed bool
}

// fetch returns the path of the package's file, which has the sha256 of the
// lock file whether it was there already or not.
func (f *fetcher) fetch(ctx context.Context, p Package) (string, error) {
	path := filepath.Join(f.cache, p.fileName())
	switch err := checkDigest(path, p.SHA256); {
	case err == nil:
		return path, nil
	case errors.Is(err, fs.ErrNotExist):
	default:
		f.logf("%v: fetching it again", err)
	}
	// Downloads go to a directory of their own, so that what is in the cache
	// under a package's name is never a part of it.
	tmp, err := os.MkdirTemp(f.cache, "fetch-")
	if err != nil {
		return "", fmt.Errorf("fetch %s: %w", p.Name, err)
	}
	defer os.RemoveAll(tmp)
	f.logf("fetching %s %s", p.Name, p.Version)
	if err := f.download(ctx, tmp, p); err != nil {
		return "", fmt.Errorf("fetch %s: %w", p.Name, err)
	}
	fetched := filepath.Join(tmp, p.fileName())
	if err := checkDigest(fetched, p.SHA256); err != nil {
		return "", fmt.Errorf("fetch %s: %w", p.Name, err)
	}
	if err := os.Rename(fetched, path); err != nil {
		return "", fmt.Errorf("fetch %s: %w", p.Name, err)
	}
	return path, nil
}

// download runs apt-get, and once more after a refresh of the package index:
// fresh installations have none, and old ones forget where packages are.
func (f *fetcher) download(ctx context.Context, dir string, p Package) error {
	// Without the option apt warns that its own user may not write to dir.
	args := []string{"--quiet", "--option", "APT::Sandbox::User=root",
		"download", p.Name + ":" + p.Arch + "=" + p.Version}
	_, err := run(ctx, dir, "apt-get", args...)
	if err == nil || f.refreshed {
		return hint(err)
	}
	f.refreshed = true
	f.logf("apt does not find %s %s: refreshing its index", p.Name, p.Version)
	if _, uerr := run(ctx, dir, "apt-get", "--quiet", "update"); uerr != nil {
		return hint(errors.Join(err, uerr))
	}
	_, err = run(ctx, dir, "apt-get", args...)
	return hint(err)
}

func hint(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w\nIf Debian has replaced this version, fetch its .deb from snapshot.debian.org into the cache directory, "+
		"or move the lock file to the current versions with -update", err)
}

func checkDigest(path, want string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if got := digest(data); got != want {
		return fmt.Errorf("%s has sha256 %s, the lock file says %s", path, got, want)
	}
	return nil
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// run runs a program in dir and returns its standard output. The error has
// what the program wrote to its standard error.
func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	// Messages of apt's are parsed and shown: not in the user's language.
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(diag.Bytes()))
	}
	return out.Bytes(), nil
}
