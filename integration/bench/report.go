package bench

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
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

// Sample is one measurement. Durations are in milliseconds.
type Sample struct {
	Runtime string `json:"runtime"`
	Op      string `json:"op"`
	// Clocks are by the names of clocks.
	Clocks map[string]float64 `json:"clocks_ms"`
	// Proof is what the process read of the kernel that it ran on.
	Proof pattern.Boot `json:"proof"`
}

// Names of clocks, in the order of a report.
const (
	clockRunning   = "b: machine runs"
	clockAgent     = "c: agent answered"
	clockStarted   = "d: Task.Start returned"
	clockFirstByte = "d: first byte"
	clockEnded     = "process has ended"
)

var clocks = []string{clockRunning, clockAgent, clockStarted, clockFirstByte, clockEnded}

// Report is the outcome of a run: every sample, and where it was taken.
type Report struct {
	Began   time.Time `json:"began"`
	CPUs    int       `json:"cpus"`
	Samples []Sample  `json:"samples"`
}

func newReport(began time.Time) *Report {
	return &Report{Began: began.UTC(), CPUs: runtime.NumCPU()}
}

// percentiles that a report shows.
var percentiles = []float64{50, 95, 99}

// Markdown is a table of the samples' percentiles.
func (r *Report) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d CPUs. Milliseconds.\n\n", r.Began.Format(time.RFC3339), r.CPUs)
	b.WriteString("| operation | clock | runtime | samples |")
	for _, p := range percentiles {
		fmt.Fprintf(&b, " p%.0f |", p)
	}
	b.WriteString("\n|---|---|---|--:|" + strings.Repeat("--:|", len(percentiles)) + "\n")
	for _, op := range []string{OpBoot, OpExec} {
		for _, clock := range clocks {
			for _, rt := range r.runtimes() {
				r.row(&b, op, clock, rt)
			}
		}
	}
	return b.String()
}

func (r *Report) row(b *strings.Builder, op, clock, rt string) {
	var values []float64
	for _, s := range r.Samples {
		if v, ok := s.Clocks[clock]; ok && s.Op == op && s.Runtime == rt {
			values = append(values, v)
		}
	}
	if values == nil {
		return
	}
	fmt.Fprintf(b, "| %s | %s | %s | %d |", op, clock, rt, len(values))
	for _, p := range percentiles {
		fmt.Fprintf(b, " %.1f |", percentile(values, p))
	}
	b.WriteString("\n")
}

// runtimes are those of the samples, in the order of their first.
func (r *Report) runtimes() []string {
	var names []string
	for _, s := range r.Samples {
		if !slices.Contains(names, s.Runtime) {
			names = append(names, s.Runtime)
		}
	}
	return names
}

// percentile is by nearest rank: a value that was measured, not one in between.
func percentile(values []float64, p float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}
