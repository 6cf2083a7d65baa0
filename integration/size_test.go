//go:build linux || freebsd

package integration

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// testSizes has a machine as small as they get, one with more processors than
// one, and one with memory on both sides of the gap below 4 GiB.
func testSizes(r *rig) {
	for _, size := range []lab.ShimConfig{
		{VCPUs: 1, MemoryMiB: 128},
		{VCPUs: 2, MemoryMiB: 1 << 10},
		{VCPUs: 1, MemoryMiB: 5 << 10},
	} {
		config := filepath.Join(r.hostDir(), "shim.toml")
		if err := r.WriteShimConfig(config, size); err != nil {
			r.Fatal(err)
		}
		out := r.mustRun([]string{"--runtime-config-path", config}, "/bin/cat", "/proc/cpuinfo", "/proc/meminfo").Stdout
		vcpus, kib := 0, 0
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "processor") {
				vcpus++
			}
			fmt.Sscanf(line, "MemTotal: %d kB", &kib)
		}
		// The kernel keeps some for itself, most of all of a small machine's.
		mib := kib >> 10
		if vcpus != size.VCPUs || mib > size.MemoryMiB || mib < size.MemoryMiB/2 {
			r.Errorf("a machine of %d vCPUs and %d MiB has %d and %d", size.VCPUs, size.MemoryMiB, vcpus, mib)
		}
	}
}
