package bundle

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// fixedMajors are the character device majors whose minors mean the same on
// every Linux (Documentation/admin-guide/devices.txt): memory devices, the
// alternate TTY devices, and misc devices with assigned minors.
var fixedMajors = []int64{1, 5, 10}

// firstDynamicMisc is the first minor of misc devices (major 10) that is
// handed out as drivers come up, and so differs from host to guest.
const firstDynamicMisc = 255

// translateDevices keeps the device nodes that mean the same in the guest. The
// others stand for hardware of the host, of which the guest has none:
// `--privileged` brings dozens.
func translateDevices(t *translation) error {
	t.spec.Linux.Devices = slices.DeleteFunc(t.spec.Linux.Devices, func(d specs.LinuxDevice) bool {
		keep := (d.Type == "c" || d.Type == "u") && slices.Contains(fixedMajors, d.Major) &&
			(d.Major != 10 || d.Minor < firstDynamicMisc) || d.Type == "p"
		if !keep {
			t.ignore("linux.devices: %s (%s %d:%d), which is the host's hardware", d.Path, d.Type, d.Major, d.Minor)
		}
		return !keep
	})
	return nil
}
