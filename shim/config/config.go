// Package config is the host administrator's configuration of the shim: a TOML
// file, and the runtime options with which containerd points at another one.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/pelletier/go-toml/v2"

	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
)

const (
	// DefaultPath is read if nothing names another file. It need not exist.
	DefaultPath = "/etc/containerd-shim-bhyve/config.toml"
	// PathEnv names the file to read instead of DefaultPath.
	PathEnv = "CONTAINERD_SHIM_BHYVE_CONFIG"
)

// Config is the whole of the file. Every key is optional.
type Config struct {
	Guest   Guest   `toml:"guest"`
	Machine Machine `toml:"machine"`
	Pool    Pool    `toml:"pool"`
}

// Guest says what machines boot.
type Guest struct {
	// Dir holds the guest image as `make guest` leaves it: kernel, initramfs
	// and manifest.
	Dir string `toml:"dir"`
}

// Machine says how machines are made.
type Machine struct {
	// VCPUs is the number of virtual CPUs.
	VCPUs int `toml:"vcpus"`
	// MemoryMiB is the guest's memory in MiB.
	MemoryMiB int `toml:"memory_mib"`
	// KernelArgs are appended to the guest kernel's command line.
	KernelArgs []string `toml:"kernel_args"`
	// BootTimeout bounds the time from the start of the machine's process to
	// the agent's first answer.
	BootTimeout Duration `toml:"boot_timeout"`
	// AgentTimeout bounds each request to the agent thereafter.
	AgentTimeout Duration `toml:"agent_timeout"`
}

// Size is how large a machine is.
type Size struct {
	// VCPUs is the number of virtual CPUs, MemoryMiB the guest's memory in MiB.
	VCPUs, MemoryMiB int
}

// Size is that of a machine of which nothing else is known.
func (m Machine) Size() Size { return Size{VCPUs: m.VCPUs, MemoryMiB: m.MemoryMiB} }

// Duration is a time.Duration written as a string: "90s". It is a struct so that
// a bare number, whose unit nobody could tell, does not pass for nanoseconds.
type Duration struct{ time.Duration }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return err
	}
	if v <= 0 {
		return fmt.Errorf("duration %q is not positive", text)
	}
	d.Duration = v
	return nil
}

// Default is the configuration of an empty file.
func Default() Config {
	return Config{
		Guest: Guest{Dir: "/usr/local/share/containerd-shim-bhyve/guest"},
		Machine: Machine{
			VCPUs:        1,
			MemoryMiB:    256,
			BootTimeout:  Duration{60 * time.Second},
			AgentTimeout: Duration{30 * time.Second},
		},
		Pool: Pool{Mode: PoolAuto, Socket: poolv1.DefaultSocket},
	}
}

// FromOptions resolves the runtime options of a Create request: none, or
// containerd's generic runtimeoptions.v1.Options with a path to a file or a
// body. Options of any other type are errdefs.ErrInvalidArgument: they were
// meant for another runtime, and to drop them would drop somebody's intent,
// unless they are empty.
func FromOptions(options typeurl.Any) (Config, error) {
	// Clients that know only runc send its options with nothing in them: a
	// message that asks for nothing is none, of whatever type it is.
	if options == nil || options.GetTypeUrl() == "" || len(options.GetValue()) == 0 {
		return load()
	}
	v, err := typeurl.UnmarshalAny(options)
	if err != nil {
		return Config{}, fmt.Errorf("runtime options of unknown type %q: %w", options.GetTypeUrl(), errdefs.ErrInvalidArgument)
	}
	o, ok := v.(*runtimeoptions.Options)
	if !ok {
		return Config{}, fmt.Errorf("runtime options of type %q: this runtime takes %s with a ConfigPath: %w",
			options.GetTypeUrl(), "runtimeoptions.v1.Options", errdefs.ErrInvalidArgument)
	}
	switch {
	case len(o.ConfigBody) > 0:
		return parse("runtime options' config body", o.ConfigBody)
	case o.ConfigPath != "":
		return Read(o.ConfigPath)
	}
	return load()
}

func load() (Config, error) {
	if path := os.Getenv(PathEnv); path != "" {
		return Read(path)
	}
	c, err := Read(DefaultPath)
	if errors.Is(err, errdefs.ErrNotFound) {
		return Default(), nil
	}
	return c, err
}

// Read reads the file at path. It is errdefs.ErrNotFound if there is none.
func Read(path string) (Config, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, fmt.Errorf("configuration %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	return parse(path, data)
}

func parse(name string, data []byte) (Config, error) {
	c := Default()
	err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&c)
	var unknown *toml.StrictMissingError
	var malformed *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		return Config{}, fmt.Errorf("configuration %s: unknown key %v: %w", name, unknown.Errors[0].Key(), errdefs.ErrInvalidArgument)
	case errors.As(err, &malformed):
		line, _ := malformed.Position()
		return Config{}, fmt.Errorf("configuration %s: line %d: %w: %w", name, line, err, errdefs.ErrInvalidArgument)
	case err != nil:
		return Config{}, fmt.Errorf("configuration %s: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	return c, nil
}
