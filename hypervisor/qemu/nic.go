//go:build linux

package qemu

import (
	"fmt"
	"os"
	"os/exec"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/link"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
	"golang.org/x/sys/unix"
)

var _ hypervisor.Pluggable = (*machine)(nil)

// nicFiles are what a start needs for the containers' interface. Both are nil
// for a machine without one.
type nicFiles struct {
	tap *os.File
	// namespace is the network namespace that the monitor is to be in, nil for a
	// new one.
	namespace *os.File
}

func openNIC(nic *hypervisor.NIC) (f nicFiles, err error) {
	switch {
	case nic == nil:
	case nic.Tap == "":
		f.tap, f.namespace, err = link.OpenPort()
	default:
		if nic.NetNS != "" {
			if f.namespace, err = netns.Open(nic.NetNS); err != nil {
				return f, err
			}
		}
		if f.tap, err = link.OpenTap(nic.NetNS, nic.Tap); err != nil {
			f.close()
		}
	}
	return f, err
}

func (f nicFiles) close() {
	for _, file := range []*os.File{f.tap, f.namespace} {
		if file != nil {
			file.Close()
		}
	}
}

// around starts a monitor that is in the network namespace of the machine's tap,
// or in one of its own. All its connections are open files. The process stands
// for its containers on the host, where clients and OCI hooks look for, and set
// up, the network namespace of that process: it must not be the host's.
func (f nicFiles) around(cmd *exec.Cmd, start func() error) error {
	if f.namespace == nil {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
		return start()
	}
	return netns.Do(f.namespace, start)
}

// Port implements hypervisor.Pluggable. Where the tap was made is where the
// monitor is.
func (m *machine) Port() *hypervisor.NIC {
	if m.cfg.NIC == nil || m.cfg.NIC.Tap != "" {
		return nil
	}
	return &hypervisor.NIC{Tap: link.PortName, NetNS: fmt.Sprintf("/proc/%d/ns/net", m.Pid()), MAC: m.cfg.NIC.MAC}
}
