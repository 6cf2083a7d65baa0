package lab

import (
	"io"
	"os"
	"path/filepath"
)

// snapshotter needs nothing of the host.
const snapshotter = "native"

// imageSource is what the images are read from, relative to the checkout.
var imageSource = artifacts.images

// archives are the lab's images, made on Linux: here is none of what goes into
// them (see integration/cmd/images).
func (l *Lab) archives() (map[string]io.Reader, error) {
	all := map[string]io.Reader{}
	for _, name := range []string{Image, ForeignImage} {
		f, err := os.Open(filepath.Join(l.repo, artifacts.images, ArchiveName(name)))
		if err != nil {
			return nil, err
		}
		// They are read once, at the start of the program.
		all[name] = f
	}
	return all, nil
}

// adapt has ctr run Linux images, which are not this host's.
func adapt(args []string) []string {
	if len(args) > 0 && args[0] == "run" {
		return append([]string{"run", "--platform", "linux/amd64"}, args[1:]...)
	}
	return args
}
