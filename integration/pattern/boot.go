package pattern

// Boot is what `probe boot` prints: which kernel answered. It is the proof that
// a sample of a benchmark, or a line on a terminal, came from a machine of its
// own.
type Boot struct {
	// Kernel is uname -srvm.
	Kernel string `json:"kernel"`
	// BootID is /proc/sys/kernel/random/boot_id: another one for each boot.
	BootID string `json:"boot_id"`
	// UptimeSeconds is the time since the kernel started.
	UptimeSeconds float64 `json:"uptime_seconds"`
}
