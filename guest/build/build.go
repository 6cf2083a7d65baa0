// Package build makes the guest image of package guest from Debian packages
// that a lock file pins, and the agent. The same inputs give the same bytes.
//
// It runs on Debian: it needs apt-get, dpkg-deb and xz.
package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/guest"
)

// Options are where an image comes from and goes to.
type Options struct {
	// Agent is the agent's program: static, for the guest.
	Agent string
	// Lock is the lock file.
	Lock string
	// Cache is a directory for the packages' files. It is made if need be.
	Cache string
	// Out is the image's directory. It is made if need be.
	Out string
	// Logf is told of each slow step before it is taken.
	Logf func(format string, args ...any)
}

const (
	kernelName = "vmlinux"
	initrdName = "initrd.img"
	stampName  = ".stamp"
)

// Image builds the image and returns it as guest.Open does. Where the image in
// o.Out is already what would be built, nothing is done.
//
// The manifest is removed first and written last: a program that opens the
// image in between finds none.
func Image(ctx context.Context, o Options) (*guest.Image, error) {
	agent, err := os.ReadFile(o.Agent)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	lockText, err := os.ReadFile(o.Lock)
	if err != nil {
		return nil, fmt.Errorf("lock file: %w", err)
	}
	lock, err := ReadLock(o.Lock)
	if err != nil {
		return nil, err
	}
	inputs := guest.Inputs{Lock: digest(lockText), Agent: digest(agent)}
	stamp, err := makeStamp(inputs)
	if err != nil {
		return nil, err
	}
	if img := upToDate(o.Out, stamp); img != nil {
		o.Logf("%s is up to date", o.Out)
		return img, nil
	}

	for _, dir := range []string{o.Cache, o.Out} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("guest image: %w", err)
		}
	}
	root, err := os.MkdirTemp(o.Cache, "unpack-")
	if err != nil {
		return nil, fmt.Errorf("guest image: %w", err)
	}
	defer os.RemoveAll(root)
	if err := unpack(ctx, o, lock, root); err != nil {
		return nil, err
	}
	o.Logf("making %s", o.Out)
	c, err := assemble(ctx, root, agent)
	if err != nil {
		return nil, err
	}
	if err := install(o.Out, c, inputs, stamp); err != nil {
		return nil, err
	}
	return guest.Open(o.Out)
}

// unpack fetches every package and unpacks them over each other in root.
func unpack(ctx context.Context, o Options, lock *Lock, root string) error {
	f := &fetcher{cache: o.Cache, logf: o.Logf}
	for _, p := range lock.Packages {
		deb, err := f.fetch(ctx, p)
		if err != nil {
			return err
		}
		if strings.HasPrefix(p.Name, kernelPrefix) {
			o.Logf("unpacking %s", p.Name)
		}
		if _, err := run(ctx, "", "dpkg-deb", "--extract", deb, root); err != nil {
			return fmt.Errorf("unpack %s: %w", p.Name, err)
		}
	}
	return nil
}

// install writes the files, and the manifest when all of them are there.
func install(dir string, c *contents, inputs guest.Inputs, stamp string) error {
	// A manifest over half-replaced files would be a lie.
	for _, name := range []string{stampName, guest.ManifestName} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("guest image: %w", err)
		}
	}
	m := guest.Manifest{
		Format:        guest.Format,
		Arch:          goArch,
		Protocol:      agentproto.Version,
		KernelRelease: c.release,
		Kernel:        describe(kernelName, c.kernel),
		Initrd:        describe(initrdName, c.initrd),
		Inputs:        inputs,
	}
	manifest, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("guest image: %w", err)
	}
	for _, f := range []struct {
		name string
		data []byte
	}{
		{kernelName, c.kernel},
		{initrdName, c.initrd},
		{guest.ManifestName, append(manifest, '\n')},
		{stampName, []byte(stamp)},
	} {
		if err := replaceFile(dir, f.name, f.data); err != nil {
			return err
		}
	}
	return nil
}

func describe(name string, data []byte) guest.File {
	return guest.File{Name: name, Size: int64(len(data)), SHA256: digest(data)}
}

// replaceFile writes dir/name so that a reader finds the old file or the new.
func replaceFile(dir, name string, data []byte) error {
	tmp, err := os.CreateTemp(dir, "."+name+"-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return os.Rename(tmp.Name(), filepath.Join(dir, name))
}

// makeStamp names everything that decides what is built: the inputs and this
// program. It is kept beside the image rather than in its manifest, because
// the same program built elsewhere has other bytes.
func makeStamp(inputs guest.Inputs) (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("guest image: %w", err)
	}
	self, err := os.ReadFile(exe)
	if err != nil {
		return "", fmt.Errorf("guest image: %w", err)
	}
	return strings.Join([]string{inputs.Lock, inputs.Agent, digest(self)}, "\n") + "\n", nil
}

// upToDate returns the image in dir if it was built under this stamp and is
// undamaged, nil otherwise.
func upToDate(dir, stamp string) *guest.Image {
	have, err := os.ReadFile(filepath.Join(dir, stampName))
	if err != nil || !bytes.Equal(have, []byte(stamp)) {
		return nil
	}
	img, err := guest.Open(dir)
	if err != nil || img.Verify() != nil {
		return nil
	}
	return img
}
