package lab

import (
	"io"
	"os"
	"path/filepath"
	"slices"
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

// Capabilities are those of a privileged container. By containerd's own means
// there would be none: it asks the host, which is no Linux.
var Capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_LINUX_IMMUTABLE", "CAP_MKNOD",
	"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_SYS_BOOT",
	"CAP_SYS_CHROOT", "CAP_SYS_MODULE", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_RESOURCE",
}

// adapt has ctr run Linux images, which are not this host's.
func adapt(args []string) []string {
	if len(args) == 0 || args[0] != "run" {
		return args
	}
	adapted := []string{"run", "--platform", "linux/amd64"}
	if slices.Contains(args, "--privileged") {
		for _, c := range Capabilities {
			adapted = append(adapted, "--cap-add", c)
		}
	}
	return append(adapted, args[1:]...)
}
