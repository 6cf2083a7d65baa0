package lab

import (
	"errors"
	"io/fs"
	"net"
	"os"

	"github.com/containerd/containerd/v2/defaults"
)

// stateDirs are directories of the system that nothing but the lab writes to.
var stateDirs = []string{defaults.DefaultStateDir, "/var/run/bhyve"}

// system looks at what only FreeBSD has: virtual machines, and interfaces that
// outlive their makers.
func (l *Lab) system(s Snapshot) error {
	machines, err := os.ReadDir("/dev/vmm")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, m := range machines {
		s.add("virtual machine %s", m.Name())
	}
	links, err := net.Interfaces()
	for _, link := range links {
		s.add("network interface %s", link.Name)
	}
	return err
}
