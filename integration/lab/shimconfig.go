package lab

import (
	"os"
	"path/filepath"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// ShimConfig is what a test may want otherwise than by default in the shim's
// configuration file. Zero fields are the lab's defaults.
type ShimConfig struct {
	// GuestDir is the directory of the guest image.
	GuestDir string
	// BootTimeout bounds a machine's way up.
	BootTimeout time.Duration
	// AgentTimeout bounds a request to the agent.
	AgentTimeout time.Duration
	// VCPUs and MemoryMiB are a machine's size.
	VCPUs, MemoryMiB int
	// Pause is what a pause does to the machine, MemoryDir where its memory is.
	Pause, MemoryDir string
	// Network is the mode of containers' network, NetworkConfig its file.
	Network, NetworkConfig string
	// PoolMode and PoolSocket are those of the section pool; without a mode
	// machines are booted.
	PoolMode, PoolSocket string
}

// The lab's defaults: a boot takes seconds even in software, but twenty at
// once on two cores take their time.
const (
	defaultBootTimeout  = 4 * time.Minute
	defaultAgentTimeout = 30 * time.Second
	defaultVCPUs        = 1
	defaultMemoryMiB    = 256
)

// WriteShimConfig writes c to a file at path, to be given to one container with
// `ctr run --runtime-config-path`.
func (l *Lab) WriteShimConfig(path string, c ShimConfig) error {
	if c.GuestDir == "" {
		c.GuestDir = filepath.Join(l.repo, artifacts.guest)
	}
	if c.BootTimeout == 0 {
		c.BootTimeout = defaultBootTimeout
	}
	if c.AgentTimeout == 0 {
		c.AgentTimeout = Patience(defaultAgentTimeout)
	}
	if c.VCPUs == 0 {
		c.VCPUs = defaultVCPUs
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = defaultMemoryMiB
	}
	if c.Network == "" {
		c.Network = "none"
	}
	if c.PoolMode == "" {
		c.PoolMode = "never"
	}
	if c.Pause == "" {
		c.Pause = "containers"
	}
	data, err := toml.Marshal(map[string]any{
		"network": map[string]any{"mode": c.Network, "config": c.NetworkConfig},
		"guest":   map[string]any{"dir": c.GuestDir},
		"machine": map[string]any{
			"vcpus":         c.VCPUs,
			"memory_mib":    c.MemoryMiB,
			"boot_timeout":  c.BootTimeout.String(),
			"agent_timeout": c.AgentTimeout.String(),
			"pause":         c.Pause,
			"memory_dir":    c.MemoryDir,
		},
		"pool": map[string]any{"mode": c.PoolMode, "socket": c.PoolSocket},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// shimConfigPath is the file that shims read unless told otherwise.
func (l *Lab) shimConfigPath() string { return filepath.Join(l.Dir, "shim.toml") }
