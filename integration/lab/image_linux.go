package lab

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/image"
)

// snapshotter is containerd's default.
const snapshotter = "overlayfs"

// imageSource is what the images are made from, relative to the checkout.
var imageSource = artifacts.probe

// archives are the lab's images.
func (l *Lab) archives() (map[string]io.Reader, error) { return makeArchives(l.Probe()) }

// makeArchives makes the images from what is on this machine.
func makeArchives(probe string) (map[string]io.Reader, error) {
	all := map[string]io.Reader{}
	for _, build := range []func() (*image.Image, error){
		func() (*image.Image, error) { return image.Busybox(Image, artifacts.busybox, probe) },
		func() (*image.Image, error) { return image.Foreign(ForeignImage) },
	} {
		img, err := build()
		if err != nil {
			return nil, fmt.Errorf("build image: %w", err)
		}
		if all[img.Name], err = img.Archive(); err != nil {
			return nil, fmt.Errorf("pack image %s: %w", img.Name, err)
		}
	}
	return all, nil
}

// WriteArchives writes the images into dir, for a lab that cannot make them. See
// ArchiveName.
func WriteArchives(dir, probe string) error {
	all, err := makeArchives(probe)
	if err != nil {
		return err
	}
	for name, archive := range all {
		f, err := os.Create(filepath.Join(dir, ArchiveName(name)))
		if err != nil {
			return err
		}
		_, err = io.Copy(f, archive)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("write image %s: %w", name, err)
		}
	}
	return nil
}

// adapt is for ctr of another system.
func adapt(args []string) []string { return args }
