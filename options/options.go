// Package options is what a Go client of containerd can give this runtime for
// one container:
//
//	containerd.WithRuntime("io.containerd.bhyve.v2", &options.Options{VCPUs: 2})
//
// Other clients point at a configuration file, or give its text, by containerd's
// own runtimeoptions.v1.Options: `ctr run --runtime-config-path FILE`, or a
// runtime's `options` table of the CRI plugin.
package options

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
)

// TypeURL is the type's name in a containerd request. Its encoding is JSON.
const TypeURL = "io.containerd.bhyve.v2/Options"

// Options change the host's configuration for one sandbox. They count where the
// machine is made: with a sandbox's first container.
type Options struct {
	// ConfigPath is a configuration file of the host's to read in place of the
	// administrator's.
	ConfigPath string `json:"config_path,omitempty"`
	// VCPUs is the machine's number of virtual CPUs, and MemoryMiB all of its
	// memory in MiB, whatever the limits of its containers; 0 leaves them to
	// those. The administrator's maximum holds.
	VCPUs     int `json:"vcpus,omitempty"`
	MemoryMiB int `json:"memory_mib,omitempty"`
	// KernelArgs are appended to the guest kernel's command line.
	KernelArgs []string `json:"kernel_args,omitempty"`
}

func init() {
	typeurl.Register(&Options{}, "io.containerd.bhyve.v2", "Options")
}

// Parse reads options as containerd passes them on. An unknown key is
// errdefs.ErrInvalidArgument and named: typeurl would drop it.
func Parse(value []byte) (Options, error) {
	var o Options
	d := json.NewDecoder(bytes.NewReader(value))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		return Options{}, fmt.Errorf("runtime options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if o.VCPUs < 0 || o.MemoryMiB < 0 {
		return Options{}, fmt.Errorf("runtime options: vcpus %d, memory_mib %d: %w", o.VCPUs, o.MemoryMiB, errdefs.ErrInvalidArgument)
	}
	return o, nil
}
