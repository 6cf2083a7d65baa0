package network

func newHost(cfg Config) host { return nil }
