package pattern

// Lot is what `probe lot` prints first thing: what no two machines may share,
// whatever they were made of.
type Lot struct {
	// Random is from getrandom(2), before anything else; Urandom from its device.
	// Both in hexadecimal.
	Random  string `json:"random"`
	Urandom string `json:"urandom"`
	// UUID is what the kernel makes of random numbers, BootID what it has made of
	// them once.
	UUID   string `json:"uuid"`
	BootID string `json:"boot_id"`
	// MachineID is /etc/machine-id of the process that is the first here.
	MachineID string `json:"machine_id"`
	Hostname  string `json:"hostname"`
	// MACs are the addresses of all interfaces but the loopback.
	MACs []string `json:"macs"`
}
