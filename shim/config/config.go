// Package config is the host administrator's configuration of the shim: a TOML
// file, and the runtime options with which containerd points at another one.
package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/protobuf/proto"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/options"
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
	Network Network `toml:"network"`
}

// Guest says what machines boot.
type Guest struct {
	// Dir holds the guest image as `make guest` leaves it: kernel, initramfs
	// and manifest.
	Dir string `toml:"dir"`
}

// Machine says how machines are made.
type Machine struct {
	// VCPUs is the number of virtual CPUs of a sandbox whose processor time is
	// not limited; otherwise there are as many as it can keep busy.
	VCPUs int `toml:"vcpus"`
	// MemoryMiB is the machine's memory in MiB for a sandbox whose memory is not
	// limited; otherwise it is the limit and OverheadMiB, rounded up to a
	// multiple of MemoryStepMiB (0 for no rounding).
	MemoryMiB int `toml:"memory_mib"`
	// OverheadMiB is what the guest's kernel and agent need in MiB, beside the
	// kernel's map of the memory, which is a 64th of it.
	OverheadMiB int `toml:"overhead_mib"`
	// MemoryStepMiB is in MiB.
	MemoryStepMiB int `toml:"memory_step_mib"`
	// MaxVCPUs and MaxMemoryMiB are the largest machine there may be. 0 is what
	// the host has.
	MaxVCPUs     int `toml:"max_vcpus"`
	MaxMemoryMiB int `toml:"max_memory_mib"`
	// Annotations are those that a sandbox may have of this runtime, by the ends
	// of their names: "vcpus" is io.containerd.bhyve.vcpus.
	Annotations []string `toml:"annotations"`
	// KernelArgs are appended to the guest kernel's command line.
	KernelArgs []string `toml:"kernel_args"`
	// Pause is what a pause of all its containers does to a machine.
	Pause PauseMode `toml:"pause"`
	// MemoryDir is a directory on a disk in which machines have their memory, each
	// in a file without a name, so that PauseMemory can free it. Without it only
	// swap can take it. Linux only; machines of the pool have none.
	MemoryDir string `toml:"memory_dir"`
	// Checkpoint makes machines that can be saved with their containers, at some
	// cost to each request for a file.
	Checkpoint bool `toml:"checkpoint"`
	// BootTimeout bounds the time from the start of the machine's process to
	// the agent's first answer.
	BootTimeout Duration `toml:"boot_timeout"`
	// AgentTimeout bounds each request to the agent thereafter.
	AgentTimeout Duration `toml:"agent_timeout"`

	// Exact is the size that the runtime options ask for, 0 where they do not.
	Exact Size `toml:"-"`
}

// AnnotationNames are what Machine.Annotations may name; package bundle has what
// they mean.
var AnnotationNames = []string{"vcpus", "memory-mib", "kernel-args", "pool", "network-policy", "checkpoint"}

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
			VCPUs:         1,
			MemoryMiB:     256,
			OverheadMiB:   100,
			MemoryStepMiB: 128,
			Pause:         PauseContainers,
			Annotations:   []string{"vcpus", "memory-mib", "pool", "checkpoint"},
			BootTimeout:   Duration{60 * time.Second},
			AgentTimeout:  Duration{30 * time.Second},
		},
		Pool:    Pool{Mode: PoolAuto, Socket: poolv1.DefaultSocket},
		Network: Network{Mode: NetworkNone},
	}
}

// FromOptions resolves the runtime options of a request: none; this runtime's
// own (package options); or containerd's generic runtimeoptions.v1.Options with a
// path to a file, which is read in place of the administrator's, or with the text
// of one, whose keys replace the administrator's. Options of any other type are
// errdefs.ErrInvalidArgument: they were meant for another runtime, and to drop
// them would drop somebody's intent, unless they are empty.
func FromOptions(o typeurl.Any) (Config, error) {
	if o == nil || o.GetTypeUrl() == "" || asksForNothing(o) {
		return load()
	}
	if o.GetTypeUrl() == options.TypeURL {
		return fromOwn(o.GetValue())
	}
	v, err := typeurl.UnmarshalAny(o)
	if err != nil {
		return Config{}, fmt.Errorf("runtime options of unknown type %q: %w", o.GetTypeUrl(), errdefs.ErrInvalidArgument)
	}
	generic, ok := v.(*runtimeoptions.Options)
	if !ok {
		return Config{}, fmt.Errorf("runtime options of type %q: this runtime takes %s, or %s with a ConfigPath: %w",
			o.GetTypeUrl(), options.TypeURL, "runtimeoptions.v1.Options", errdefs.ErrInvalidArgument)
	}
	switch {
	case len(generic.ConfigBody) > 0:
		c, err := load()
		if err != nil {
			return Config{}, err
		}
		return parse("runtime options' config body", generic.ConfigBody, c)
	case generic.ConfigPath != "":
		return Read(generic.ConfigPath)
	}
	return load()
}

// asksForNothing: a message with nothing in it is none, of whatever type it is.
// Clients send runc's so, and containerd's puts the address of the sandbox's own
// task service into them for containerds that look for it nowhere else
// (client.WithTaskAPIEndpoint).
func asksForNothing(o typeurl.Any) bool {
	if len(o.GetValue()) == 0 {
		return true
	}
	var runc runcoptions.Options
	if err := typeurl.UnmarshalTo(o, &runc); err != nil {
		return false
	}
	//lint:ignore SA1019 they are sent all the same
	runc.TaskApiAddress, runc.TaskApiVersion = "", 0
	// Said again by containerd as what a task is to be restored from.
	runc.CriuImagePath = ""
	return proto.Size(&runc) == 0
}

func fromOwn(value []byte) (Config, error) {
	o, err := options.Parse(value)
	if err != nil {
		return Config{}, err
	}
	var c Config
	if o.ConfigPath != "" {
		c, err = Read(o.ConfigPath)
	} else {
		c, err = load()
	}
	if err != nil {
		return Config{}, err
	}
	c.Machine.Exact = Size{VCPUs: o.VCPUs, MemoryMiB: o.MemoryMiB}
	c.Machine.KernelArgs = append(c.Machine.KernelArgs, o.KernelArgs...)
	return c, nil
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
	return parse(path, data, Default())
}

// parse is c with what a file says.
func parse(name string, data []byte, c Config) (Config, error) {
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
	// The decoder takes any string for a type that is one, and does not ask it.
	for _, m := range []struct {
		table, text string
		mode        encoding.TextUnmarshaler
	}{
		{"machine", string(c.Machine.Pause), &c.Machine.Pause},
		{"pool", string(c.Pool.Mode), &c.Pool.Mode},
		{"network", string(c.Network.Mode), &c.Network.Mode},
	} {
		if err := m.mode.UnmarshalText([]byte(m.text)); err != nil {
			return Config{}, fmt.Errorf("configuration %s: %s: %w: %w", name, m.table, err, errdefs.ErrInvalidArgument)
		}
	}
	if err := c.Machine.validate(); err != nil {
		return Config{}, fmt.Errorf("configuration %s: machine.%w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

// validate checks what no backend has to be asked for.
func (m Machine) validate() error {
	for _, f := range []struct {
		name       string
		value, low int
	}{
		{"vcpus", m.VCPUs, 1},
		{"memory_mib", m.MemoryMiB, 1},
		{"overhead_mib", m.OverheadMiB, 0},
		{"memory_step_mib", m.MemoryStepMiB, 0},
		{"max_vcpus", m.MaxVCPUs, 0},
		{"max_memory_mib", m.MaxMemoryMiB, 0},
	} {
		if f.value < f.low {
			return fmt.Errorf("%s is %d: want at least %d", f.name, f.value, f.low)
		}
	}
	if m.MemoryDir != "" && !filepath.IsAbs(m.MemoryDir) {
		return fmt.Errorf("memory_dir %q is no absolute path", m.MemoryDir)
	}
	for _, a := range m.Annotations {
		if !slices.Contains(AnnotationNames, a) {
			return fmt.Errorf("annotations: unknown %q: want some of %q", a, AnnotationNames)
		}
	}
	return nil
}
