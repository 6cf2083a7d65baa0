package bench

import (
	"math"
	"runtime"
	"slices"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

// Operations that are measured.
const (
	// OpBoot is a container's start, with a machine of its own where the
	// runtime makes one.
	OpBoot = "boot"
	// OpExec is a further process in a container that runs.
	OpExec = "exec"
)

// The tiers that containers' machines come from, in the order of a report. Runc
// has none.
const (
	TierRunc           = "runc"
	TierBootFull       = "boot-full"
	TierBootMinimal    = "boot-minimal"
	TierPrewarm        = "prewarm"
	TierDurable        = "durable"
	TierDurablePrewarm = "durable-prewarm"
	// TierDurableRehearsed is TierDurablePrewarm with --rehearse-clones.
	TierDurableRehearsed = "durable-rehearsed"
)

var tiers = []string{TierRunc, TierBootFull, TierBootMinimal, TierPrewarm, TierDurable, TierDurablePrewarm, TierDurableRehearsed}

// hotTiers are those whose machines wait, and restoredTiers those of them that
// are made of a checkpoint.
var (
	hotTiers      = []string{TierPrewarm, TierDurablePrewarm, TierDurableRehearsed}
	restoredTiers = []string{TierDurablePrewarm, TierDurableRehearsed}
)

// Sample is one measurement. Durations are in milliseconds.
type Sample struct {
	Tier string `json:"tier"`
	Op   string `json:"op"`
	// Concurrency is how many were started at the same time.
	Concurrency int `json:"concurrency"`
	// Clocks are by the names of clocks.
	Clocks map[string]float64 `json:"clocks_ms"`
	// Proof is what the process read of the kernel that it ran on.
	Proof pattern.Boot `json:"proof"`
	// Machine is what the shim said of the machine.
	Machine *Origin `json:"machine,omitempty"`
	// Steps are what the shim did, since the request to create the container
	// reached it.
	Steps []Step `json:"steps,omitempty"`
}

// Step is a part of the shim's work, in milliseconds. Steps may be parts of
// others, and overlap.
type Step struct {
	Name  string  `json:"name"`
	Begin float64 `json:"begin_ms"`
	Took  float64 `json:"took_ms"`
}

// Origin is a machine by the words of the shim that has it.
type Origin struct {
	ID string `json:"id"`
	// Path is where it came from: boot, hot or cold.
	Path string `json:"path"`
	// AgeMS is for how long it had been ready when it was claimed.
	AgeMS float64 `json:"age_ms,omitempty"`
	// UptimeMS is for how long its kernel had run when the agent answered.
	UptimeMS float64 `json:"uptime_ms"`
}

// Refill is the making of machines that wait.
type Refill struct {
	Tier     string `json:"tier"`
	Machines int    `json:"machines"`
	// WallMS is the time until all of them waited, CPUMS the processor time that
	// each of them had then taken.
	WallMS float64 `json:"wall_ms"`
	CPUMS  float64 `json:"cpu_ms_per_machine"`
	// Rebuild is true where the daemon and all machines had been killed before,
	// and the time includes the start of the next daemon.
	Rebuild bool `json:"rebuild,omitempty"`
}

// Footprint is what machines that wait take, in bytes, on average.
type Footprint struct {
	Tier     string `json:"tier"`
	Machines int    `json:"machines"`
	RSS      uint64 `json:"rss"`
	PSS      uint64 `json:"pss"`
	// GuestPrivate is memory of the guest that only this machine has written,
	// MonitorPrivate what only this machine's monitor has.
	GuestPrivate   uint64 `json:"guest_private_dirty"`
	MonitorPrivate uint64 `json:"monitor_private_dirty"`
	// DaemonRSS is the pool's daemon beside them.
	DaemonRSS uint64 `json:"daemon_rss"`
	// StatusMS is how long the daemon took to answer a status call.
	StatusMS float64 `json:"status_ms"`
}

// Names of clocks, in the order of a report.
const (
	clockOwned     = "a: machine owned"
	clockRunning   = "b: machine runs"
	clockAgent     = "c: agent answered"
	clockThawed    = "c: thawed"
	clockCreated   = "d: Task.Create returned"
	clockStarted   = "d: Task.Start returned"
	clockFirstByte = "d: first byte"
	clockEnded     = "process has ended"
)

var clocks = []string{clockOwned, clockRunning, clockAgent, clockThawed, clockCreated, clockStarted, clockFirstByte, clockEnded}

// Report is the outcome of a run: every sample, and where it was taken.
type Report struct {
	Began time.Time `json:"began"`
	CPUs  int       `json:"cpus"`
	// Accelerated is false where guests are emulated in software.
	Accelerated bool `json:"accelerated"`
	MemoryMiB   int  `json:"guest_memory_mib"`
	// MaxBoots is Options.MaxBoots.
	MaxBoots   int         `json:"max_boots,omitempty"`
	Samples    []Sample    `json:"samples"`
	Refills    []Refill    `json:"refills"`
	Footprints []Footprint `json:"footprints"`
}

func newReport(began time.Time) *Report {
	return &Report{Began: began.UTC(), CPUs: runtime.NumCPU()}
}

// percentiles that a report shows.
var percentiles = []float64{50, 95, 99}

// values are those of one clock in samples of one kind.
func (r *Report) values(op, tier string, concurrency int, clock string) (values []float64) {
	for _, s := range r.Samples {
		if v, ok := s.Clocks[clock]; ok && s.Op == op && s.Tier == tier && s.Concurrency == concurrency {
			values = append(values, v)
		}
	}
	return values
}

// concurrencies are those of the samples, in order.
func (r *Report) concurrencies() []int {
	var list []int
	for _, s := range r.Samples {
		if !slices.Contains(list, s.Concurrency) {
			list = append(list, s.Concurrency)
		}
	}
	slices.Sort(list)
	return list
}

// percentile is by nearest rank: a value that was measured, not one in between.
func percentile(values []float64, p float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}

func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}
