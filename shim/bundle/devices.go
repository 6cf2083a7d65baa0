package bundle

import (
	"slices"
	"strings"

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
	var dropped []string
	t.spec.Linux.Devices = slices.DeleteFunc(t.spec.Linux.Devices, func(d specs.LinuxDevice) bool {
		keep := (d.Type == "c" || d.Type == "u") && slices.Contains(fixedMajors, d.Major) &&
			(d.Major != 10 || d.Minor < firstDynamicMisc) || d.Type == "p"
		if !keep {
			dropped = append(dropped, d.Path)
		}
		return !keep
	})
	if len(dropped) > 0 {
		t.ignore("linux.devices, which are the host's hardware: %s", strings.Join(dropped, " "))
	}
	return nil
}
