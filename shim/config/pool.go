package config

// Pool says whether machines come from the pool's daemon.
type Pool struct {
	Mode PoolMode `toml:"mode"`
	// Socket is the daemon's.
	Socket string `toml:"socket"`
	// Template, if set, is the only one that machines are taken from. Without it
	// any will do that makes machines of the size and image that are wanted.
	Template string `toml:"template"`
}

// PoolMode is what is done without a machine of the pool's.
type PoolMode string

const (
	// PoolAuto claims a machine where a daemon runs and has one ready, and boots
	// one otherwise.
	PoolAuto PoolMode = "auto"
	// PoolRequire fails where the pool does not give a machine.
	PoolRequire PoolMode = "require"
	// PoolNever boots machines.
	PoolNever PoolMode = "never"
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *PoolMode) UnmarshalText(text []byte) error {
	return setMode(m, "pool", text, PoolAuto, PoolRequire, PoolNever)
}
