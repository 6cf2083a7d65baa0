package config

import "fmt"

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
	switch v := PauseMode(text); v {
	case PauseContainers, PauseMachine, PauseMemory:
		*m = v
		return nil
	}
	return fmt.Errorf("pause mode %q: want %s, %s or %s", text, PauseContainers, PauseMachine, PauseMemory)
}
