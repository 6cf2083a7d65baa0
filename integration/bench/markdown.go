package bench

import (
	"fmt"
	"strings"
	"time"
)

// Markdown is tables of the samples' percentiles, of what waiting machines cost,
// and of how the figures stand to those of the same run that they are compared
// with.
func (r *Report) Markdown() string {
	var b strings.Builder
	how := "emulated in software"
	if r.Accelerated {
		how = "on hardware virtualization"
	}
	fmt.Fprintf(&b, "%s, %d CPUs, guests of %d MiB %s. Milliseconds.\n\n", r.Began.Format(time.RFC3339), r.CPUs, r.MemoryMiB, how)
	b.WriteString("| operation | at once | clock | machine from | samples | mean |")
	for _, p := range percentiles {
		fmt.Fprintf(&b, " p%.0f |", p)
	}
	b.WriteString("\n|---|--:|---|---|--:|--:|" + strings.Repeat("--:|", len(percentiles)) + "\n")
	for _, op := range []string{OpBoot, OpExec} {
		for _, n := range r.concurrencies() {
			for _, clock := range clocks {
				for _, tier := range tiers {
					r.row(&b, op, n, clock, tier)
				}
			}
		}
	}
	for _, note := range r.leftOut() {
		fmt.Fprintf(&b, "\n%s\n", note)
	}
	r.breakdownTable(&b)
	r.ratios(&b)
	r.costs(&b)
	return b.String()
}

func (r *Report) row(b *strings.Builder, op string, concurrency int, clock, tier string) {
	values := r.values(op, tier, concurrency, clock)
	if values == nil {
		return
	}
	fmt.Fprintf(b, "| %s | %d | %s | %s | %d | %.1f |", op, concurrency, clock, tier, len(values), mean(values))
	for _, p := range percentiles {
		fmt.Fprintf(b, " %.1f |", percentile(values, p))
	}
	b.WriteString("\n")
}

// ratio is one figure of a run against another of the same run, or against what
// it may be at most.
type ratio struct {
	what, of, to string
	value        float64
	// aim is the project's, reached or not.
	aim     string
	reached bool
}

func (r *Report) allRatios() (list []ratio) {
	p50 := func(tier string, concurrency int, clock string, p float64) (float64, bool) {
		values := r.values(OpBoot, tier, concurrency, clock)
		if values == nil {
			return 0, false
		}
		return percentile(values, p), true
	}
	add := func(what, of, to string, a, b float64, aim string, limit float64) {
		list = append(list, ratio{what: what, of: of, to: to, value: a / b, aim: aim, reached: a/b <= limit})
	}
	full, haveFull := p50(TierBootFull, 1, clockAgent, 50)
	for _, tier := range hotTiers {
		one, ok := p50(tier, 1, clockAgent, 50)
		if ok && haveFull {
			add("agent answered, p50", tier, TierBootFull, one, full, "≤ 1/100", 0.01)
		}
		if many, there := p50(tier, 50, clockAgent, 95); ok && there {
			add("agent answered, p95 of 50 at once to p50 of one", tier, tier, many, one, "≤ 5", 5)
		}
		if first, ok := p50(tier, 1, clockFirstByte, 50); ok {
			if runc, ok := p50(TierRunc, 1, clockFirstByte, 50); ok {
				add("first byte, p50", tier, TierRunc, first, runc, "≤ 1", 1)
			}
		}
	}
	if cold, ok := p50(TierDurable, 1, clockAgent, 50); ok && haveFull {
		add("agent answered, p50", TierDurable, TierBootFull, cold, full, "≤ 1/10", 0.1)
	}
	if minimal, ok := p50(TierBootMinimal, 1, clockAgent, 50); ok && haveFull {
		add("agent answered, p50", TierBootMinimal, TierBootFull, minimal, full, "≤ 1/2", 0.5)
	}
	for _, f := range r.Footprints {
		limit := func(what string, value float64, aim string, limit float64) {
			list = append(list, ratio{what: what, of: f.Tier, to: fmt.Sprintf("%d machines", f.Machines), value: value, aim: aim, reached: value <= limit})
		}
		if f.Tier != TierPrewarm {
			limit("guest's own pages, each", mib(f.GuestPrivate), "≤ 4 MiB", 4)
		}
		if f.Machines >= 100 {
			limit("daemon's RSS", mib(f.DaemonRSS), "≤ 20 MiB", 20)
			limit("status", f.StatusMS, "< 50 ms", 50)
		}
	}
	return list
}

// figure has the digits that matter.
func (x ratio) figure() string {
	if x.value < 1 {
		return fmt.Sprintf("%.3f", x.value)
	}
	return fmt.Sprintf("%.1f", x.value)
}

func (r *Report) ratios(b *strings.Builder) {
	all := r.allRatios()
	if all == nil {
		return
	}
	b.WriteString("\n| within this run | of | to | ratio | aim | |\n|---|---|---|--:|---|---|\n")
	for _, x := range all {
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s |\n", x.what, x.of, x.to, x.figure(), x.aim, reached(x.reached))
	}
}

func reached(yes bool) string {
	if yes {
		return "reached"
	}
	return "missed"
}

func (r *Report) costs(b *strings.Builder) {
	if len(r.Refills) > 0 {
		b.WriteString("\n| machines made to wait | how | machines | s | ms of CPU each |\n|---|---|--:|--:|--:|\n")
		for _, f := range r.Refills {
			how := "refill"
			if f.Rebuild {
				how = "after everything was killed"
			}
			fmt.Fprintf(b, "| %s | %s | %d | %.1f | %.0f |\n", f.Tier, how, f.Machines, f.WallMS/1000, f.CPUMS)
		}
	}
	if len(r.Footprints) > 0 {
		b.WriteString("\n| waiting machines, MiB each | machines | RSS | PSS | guest's own pages | monitor's own | daemon | status, ms |\n|---|--:|--:|--:|--:|--:|--:|--:|\n")
		for _, f := range r.Footprints {
			fmt.Fprintf(b, "| %s | %d | %.1f | %.1f | %.2f | %.1f | %.1f | %.1f |\n", f.Tier, f.Machines,
				mib(f.RSS), mib(f.PSS), mib(f.GuestPrivate), mib(f.MonitorPrivate), mib(f.DaemonRSS), f.StatusMS)
		}
	}
	for _, note := range r.thousands() {
		fmt.Fprintf(b, "\n%s\n", note)
	}
}

func mib(bytes uint64) float64 { return float64(bytes) / (1 << 20) }
