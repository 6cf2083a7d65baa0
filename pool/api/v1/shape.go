// Package poolv1 is the interface of the pool's daemon: its messages, its ttrpc
// service, and what a shape is made from.
package poolv1

import (
	"fmt"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/guest"
)

// DefaultSocket is where the daemon serves unless told otherwise.
const DefaultSocket = "/var/run/bhyve-pool/pool.sock"

// NewShape is the shape of a machine that boots image.
func NewShape(image *guest.Image, vcpus, memoryMiB int, kernelArgs []string, nic bool) *Shape {
	return &Shape{
		Kernel:     image.Manifest.Kernel.SHA256,
		Initrd:     image.Manifest.Initrd.SHA256,
		Vcpus:      uint32(vcpus),
		MemoryMib:  uint32(memoryMiB),
		KernelArgs: kernelArgs,
		Nic:        nic,
	}
}

// Key is equal for equal shapes and for no others.
func (s *Shape) Key() string {
	return fmt.Sprintf("%s %s %d %d %t %q", s.GetKernel(), s.GetInitrd(), s.GetVcpus(), s.GetMemoryMib(), s.GetNic(), s.GetKernelArgs())
}

// Describe is the shape in a person's words.
func (s *Shape) Describe() string {
	text := fmt.Sprintf("%d vCPU, %d MiB, image %.12s", s.GetVcpus(), s.GetMemoryMib(), s.GetInitrd())
	if s.GetNic() {
		text += ", network interface"
	}
	if len(s.GetKernelArgs()) > 0 {
		text += ", arguments " + strings.Join(s.GetKernelArgs(), " ")
	}
	return text
}
