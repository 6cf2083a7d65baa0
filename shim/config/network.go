package config

import "fmt"

// Network says what network containers have that were given none by their
// client. A client that names a network namespace of the host's, as CRI does,
// gets that one.
type Network struct {
	Mode NetworkMode `toml:"mode"`
	// Config is the file that describes the default network; empty for
	// network.DefaultPath.
	Config string `toml:"config"`
}

// NetworkMode is one of those below.
type NetworkMode string

const (
	// NetworkNone gives a loopback interface and nothing else.
	NetworkNone NetworkMode = "none"
	// NetworkDefault gives each sandbox an address and a policy of package network.
	NetworkDefault NetworkMode = "default"
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *NetworkMode) UnmarshalText(text []byte) error {
	*m = NetworkMode(text)
	if *m != NetworkNone && *m != NetworkDefault {
		return fmt.Errorf("network mode %q: want %q or %q", text, NetworkNone, NetworkDefault)
	}
	return nil
}
