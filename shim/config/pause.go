package config

// PauseMode is what becomes of a machine whose containers are all paused.
type PauseMode string

const (
	// PauseContainers freezes containers alone: the machine runs on.
	PauseContainers PauseMode = "containers"
	// PauseMachine stops the machine as well, so that it takes no processor time.
	PauseMachine PauseMode = "machine"
	// PauseMemory also gives its memory back to the host, see Machine.MemoryDir.
	PauseMemory PauseMode = "memory"
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *PauseMode) UnmarshalText(text []byte) error {
	return setMode(m, "pause", text, PauseContainers, PauseMachine, PauseMemory)
}
