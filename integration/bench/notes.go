package bench

import (
	"fmt"
	"slices"
	"strings"
)

// bootTiers are those each of whose machines costs a boot.
var bootTiers = []string{TierBootFull, TierBootMinimal, TierPrewarm}

// leftOut says which rows are not there, and why.
func (r *Report) leftOut() (notes []string) {
	for _, n := range r.concurrencies() {
		var tiers []string
		for _, tier := range bootTiers {
			of := func(s Sample) bool { return s.Op == OpBoot && s.Tier == tier }
			here := slices.ContainsFunc(r.Samples, func(s Sample) bool { return of(s) && s.Concurrency == n })
			if slices.ContainsFunc(r.Samples, of) && !here {
				tiers = append(tiers, tier)
			}
		}
		if n > r.MaxBoots && r.MaxBoots > 0 && len(tiers) > 0 {
			notes = append(notes, fmt.Sprintf("Not measured with %d at once: %s. Each of their machines costs a boot, and -max-boots was %d.",
				n, strings.Join(tiers, ", "), r.MaxBoots))
		}
	}
	return notes
}

// anchorGiB is what another project's patched bhyve(8) has shown for a thousand
// machines of 256 MiB, all in, on hardware.
const anchorGiB = 9.1

// thousands are what a thousand clones would take by the most that were measured
// of each tier, to stand beside anchorGiB.
func (r *Report) thousands() (notes []string) {
	for _, tier := range restoredTiers {
		var most Footprint
		for _, f := range r.Footprints {
			if f.Tier == tier && f.Machines > most.Machines {
				most = f
			}
		}
		if most.Machines == 0 || most.PSS == 0 {
			continue
		}
		gib := func(bytes uint64) float64 { return 1000 * mib(bytes) / 1024 }
		all, monitors := gib(most.PSS), gib(min(most.MonitorPrivate, most.PSS))
		notes = append(notes, fmt.Sprintf("A thousand machines of %s, by the PSS of %d: %.1f GiB, all in, of which %.1f GiB are the monitors' own and %.1f GiB the guests' pages. "+
			"The anchor is %.1f GiB for 1000 of 256 MiB, all in, on hardware.",
			tier, most.Machines, all, monitors, gib(most.GuestPrivate), anchorGiB))
	}
	return notes
}
