//go:build linux

package qemu

import (
	"bufio"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
)

// haveKVM says whether guests can run on the hardware. That /dev/kvm opens is
// not enough: hosts without nested virtualization have been seen whose device
// makes machines that never get out of their firmware. Their processors do not
// announce vmx or svm.
var haveKVM = sync.OnceValue(func() bool {
	info, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return false
	}
	defer info.Close()
	if !virtualizes(info) {
		return false
	}
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	dev.Close()
	return true
})

// virtualizes reads /proc/cpuinfo for Intel's vmx or AMD's svm.
func virtualizes(cpuinfo io.Reader) bool {
	for lines := bufio.NewScanner(cpuinfo); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		flags := strings.Fields(value)
		return slices.Contains(flags, "vmx") || slices.Contains(flags, "svm")
	}
	return false
}
