package config

// Network says what network containers have that were given none by their
// client. A client that names a network namespace of the host's, as CRI does,
// gets that one.
type Network struct {
	Mode NetworkMode `toml:"mode"`
	// Config is the file that describes the default network; empty for
	// network.DefaultPath.
	Config string `toml:"config"`
	// Policy names one of the policies of that file; empty for the one that all
	// have.
	Policy string `toml:"policy"`
}

// NetworkMode is one of those below.
type NetworkMode string

const (
	// NetworkNone gives a loopback interface and nothing else.
	NetworkNone NetworkMode = "none"
	// NetworkDefault gives each sandbox an address and a policy of package network.
	NetworkDefault NetworkMode = "default"
	// NetworkCNI gives what the client's CNI plugins put into a network namespace
	// of the machine's process, between the creation of a container and its start
	// (`ctr run --cni`). A client that does so in a hook (nerdctl) needs no mode.
	NetworkCNI NetworkMode = "cni"
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *NetworkMode) UnmarshalText(text []byte) error {
	return setMode(m, "network", text, NetworkNone, NetworkDefault, NetworkCNI)
}
