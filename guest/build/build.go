// Package build makes the guest image of package guest from Debian packages
// that a lock file pins, and the agent. The same inputs give the same bytes.
//
// It runs on Debian: it needs apt-get, dpkg-deb and xz.
package build

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/guest"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
)

// Options are where an image comes from and goes to.
type Options struct {
	// Agent is the agent's program: static, for the guest.
	Agent string
	// Lock is the lock file.
	Lock string
	// Kernel is an ELF vmlinux that has everything built in, to be used instead
	// of the one of the lock file; empty for that one.
	Kernel string
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
)

// comfortableInitrd is the size in bytes up to which an initramfs was seen to
// unpack in hypervisor.MinMemoryMiB. The kernel panics when it does not:
// archive and contents are in memory together for a moment.
const comfortableInitrd = 23 << 20

// Image builds the image and returns it as guest.Open does. Where the image in
// o.Out is already what would be built, it is left alone.
//
// The manifest is removed first and written last: a program that opens the
// image in between finds none.
func Image(ctx context.Context, o Options) (*guest.Image, error) {
	agent, err := os.ReadFile(o.Agent)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	lock, err := ReadLock(o.Lock)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{o.Cache, o.Out} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("guest image: %w", err)
		}
	}
	var own *ownKernel
	if o.Kernel != "" {
		if own, err = readKernel(o.Kernel); err != nil {
			return nil, err
		}
		lock = lock.withoutKernel()
	}
	b, err := makeBase(ctx, o, lock, own)
	if err != nil {
		return nil, err
	}
	archive, err := agentArchive(agent)
	if err != nil {
		return nil, err
	}
	initrd := slices.Concat(b.archive, archive)
	if len(initrd) > comfortableInitrd {
		o.Logf("the initramfs has %d MiB: more than %d do not unpack in a machine of %d MiB; is the agent stripped (-ldflags '-s -w')?",
			len(initrd)>>20, comfortableInitrd>>20, hypervisor.MinMemoryMiB)
	}
	manifest := guest.Manifest{
		Format:        guest.Format,
		Arch:          goArch,
		Protocol:      agentproto.Version,
		KernelRelease: b.release,
		Kernel:        describe(kernelName, b.kernel),
		Initrd:        describe(initrdName, initrd),
		Inputs:        guest.Inputs{Lock: digest(lock.Format()), Agent: digest(agent), Kernel: own.digest()},
	}
	if img, err := guest.Open(o.Out); err == nil && img.Manifest == manifest && img.Verify() == nil {
		o.Logf("%s is up to date", o.Out)
		return img, nil
	}
	o.Logf("writing %s", o.Out)
	if err := install(o.Out, manifest, b.kernel, initrd); err != nil {
		return nil, err
	}
	return guest.Open(o.Out)
}

// makeBase returns the base that the lock file describes, from the cache if it
// was the last one made by this program.
func makeBase(ctx context.Context, o Options, lock *Lock, own *ownKernel) (*base, error) {
	cache, err := openBaseCache(filepath.Join(o.Cache, own.baseName()), lock, own)
	if err != nil {
		return nil, err
	}
	if b := cache.load(); b != nil {
		return b, nil
	}
	root, err := os.MkdirTemp(o.Cache, "unpack-")
	if err != nil {
		return nil, fmt.Errorf("guest image: %w", err)
	}
	defer os.RemoveAll(root)
	if err := unpack(ctx, o, lock, root); err != nil {
		return nil, err
	}
	b, err := assemble(ctx, root, own)
	if err != nil {
		return nil, err
	}
	if err := cache.save(b); err != nil {
		return nil, err
	}
	return b, nil
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

func install(dir string, m guest.Manifest, kernel, initrd []byte) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("guest image: %w", err)
	}
	return writeSealed(dir, guest.ManifestName, append(text, '\n'), map[string][]byte{kernelName: kernel, initrdName: initrd})
}

func describe(name string, data []byte) guest.File {
	return guest.File{Name: name, Size: int64(len(data)), SHA256: digest(data)}
}
