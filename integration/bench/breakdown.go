package bench

import (
	"fmt"
	"slices"
	"strings"
)

// Parts of clock d that are not the shim's.
const (
	partBefore  = "containerd, and the shim's own start"
	partBetween = "containerd, between Create and Start"
	partOutput  = "from Start's end to the first byte"
	stepCreate  = "create"
	stepStart   = "start"
)

// part is one row of the breakdown: how long it took in each tier, by median.
type part struct {
	Name string
	// Depth is how many other parts it is part of.
	Depth int
	// Took is by tier. A part that a tier has not is absent.
	Took map[string]float64
}

// breakdown says where the time to the first byte goes, one container at a time,
// in the tiers there are samples of. The parts of the first level add up to it,
// in each sample; medians need not.
func (r *Report) breakdown() (list []part, there []string) {
	for _, tier := range tiers {
		var order []part
		took := map[string][]float64{}
		add := func(name string, depth int, ms float64) {
			if _, ok := took[name]; !ok {
				order = append(order, part{Name: name, Depth: depth})
			}
			took[name] = append(took[name], ms)
		}
		for _, s := range r.Samples {
			if s.Tier != tier || s.Op != OpBoot || s.Concurrency != 1 {
				continue
			}
			create, start := s.step(stepCreate), s.step(stepStart)
			add(partBefore, 0, s.Clocks[clockCreated]-create.Took)
			for _, x := range s.nested() {
				if x.Name == stepStart {
					add(partBetween, 0, s.Clocks[clockStarted]-s.Clocks[clockCreated]-start.Took)
				}
				add(x.Name, x.depth, x.Took)
			}
			if len(s.Steps) == 0 {
				add(partBetween, 0, s.Clocks[clockStarted]-s.Clocks[clockCreated])
			}
			add(partOutput, 0, s.Clocks[clockFirstByte]-s.Clocks[clockStarted])
		}
		if len(order) > 0 {
			there = append(there, tier)
		}
		after := -1
		for _, p := range order {
			i := slices.IndexFunc(list, func(q part) bool { return q.Name == p.Name })
			if i < 0 {
				p.Took = map[string]float64{}
				i = after + 1
				list = slices.Insert(list, i, p)
			}
			list[i].Took[tier] = percentile(took[p.Name], 50)
			after = i
		}
	}
	return list, there
}

func (s *Sample) step(name string) Step {
	if i := slices.IndexFunc(s.Steps, func(x Step) bool { return x.Name == name }); i >= 0 {
		return s.Steps[i]
	}
	return Step{}
}

type nestedStep struct {
	Step
	depth int
}

// nested are the steps in the order of their beginnings, each after what it is
// part of.
func (s *Sample) nested() (list []nestedStep) {
	sorted := slices.Clone(s.Steps)
	slices.SortStableFunc(sorted, func(a, b Step) int {
		switch {
		case a.Begin != b.Begin && a.Begin < b.Begin, a.Begin == b.Begin && a.Took > b.Took:
			return -1
		case a.Begin == b.Begin && a.Took == b.Took:
			return 0
		}
		return 1
	})
	for i, x := range sorted {
		depth := 0
		for _, outer := range sorted[:i] {
			// Times are rounded.
			if outer.Begin+outer.Took+0.1 >= x.Begin+x.Took && outer.Took > x.Took {
				depth++
			}
		}
		list = append(list, nestedStep{x, depth})
	}
	return list
}

func (r *Report) breakdownTable(b *strings.Builder) {
	parts, there := r.breakdown()
	if len(parts) == 0 {
		return
	}
	b.WriteString("\n| where the time goes, one at a time, p50 |")
	for _, tier := range there {
		fmt.Fprintf(b, " %s |", tier)
	}
	b.WriteString("\n|---|" + strings.Repeat("--:|", len(there)) + "\n")
	for _, p := range parts {
		fmt.Fprintf(b, "| %s%s |", strings.Repeat("&emsp;", p.Depth), p.Name)
		for _, tier := range there {
			if ms, ok := p.Took[tier]; ok {
				fmt.Fprintf(b, " %.1f |", ms)
			} else {
				b.WriteString(" |")
			}
		}
		b.WriteString("\n")
	}
}
