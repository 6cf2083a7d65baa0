//go:build linux

package qemu

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
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

// processor is what a guest is shown: by TCG always the same, by KVM what this
// host has.
func processor(kvm bool) string {
	if !kvm {
		return "tcg " + cpuModel(false)
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "kvm on an unknown processor"
	}
	return "kvm " + describeCPU(string(info))
}

// describeCPU is the model and a digest of the features of the first processor
// in /proc/cpuinfo.
func describeCPU(cpuinfo string) string {
	var model, flags string
	first, _, _ := strings.Cut(cpuinfo, "\n\n")
	for line := range strings.Lines(first) {
		switch name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) {
		case "model name":
			model = strings.TrimSpace(value)
		case "flags":
			sum := sha256.Sum256([]byte(strings.TrimSpace(value)))
			flags = hex.EncodeToString(sum[:8])
		}
	}
	return model + ", features " + flags
}

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
