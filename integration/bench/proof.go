package bench

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

// proofCommand is what a sample's process does: busybox tells of its kernel. It
// is as small as a program gets, as what is measured is not the program.
var proofCommand = []string{"cat", "/proc/sys/kernel/random/boot_id", "/proc/uptime", "/proc/version"}

// parseProof reads what proofCommand prints.
func parseProof(output []byte) (pattern.Boot, error) {
	lines := strings.Split(strings.TrimSpace(string(output)), "\n")
	if len(lines) != 3 {
		return pattern.Boot{}, fmt.Errorf("%q: want three lines", output)
	}
	up, _, _ := strings.Cut(lines[1], " ")
	seconds, err := strconv.ParseFloat(up, 64)
	if err != nil {
		return pattern.Boot{}, fmt.Errorf("uptime: %w", err)
	}
	return pattern.Boot{BootID: lines[0], UptimeSeconds: seconds, Kernel: lines[2]}, nil
}
