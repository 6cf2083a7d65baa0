package bench

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"math"
	"strings"
	"time"
)

//go:embed report.html
var pageSource string

var page = template.Must(template.New("report").Parse(pageSource))

// HTML is one page that needs nothing else: charts, tables, and every sample.
func (r *Report) HTML() ([]byte, error) {
	samples, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = page.Execute(&out, map[string]any{
		"Report":     r,
		"When":       r.Began.Format(time.RFC1123),
		"Charts":     r.charts(),
		"Ratios":     r.htmlRatios(),
		"Footprints": r.htmlFootprints(),
		"Breakdown":  r.htmlBreakdown(),
		"LeftOut":    r.leftOut(),
		"Thousands":  r.thousands(),
		"Refills":    r.Refills,
		"Samples":    template.JS(samples),
	})
	return out.Bytes(), err
}

// chart is one clock at one concurrency, a bar a tier, on a logarithmic scale:
// the tiers are orders of magnitude apart.
type chart struct {
	Title string
	Bars  []bar
}

type bar struct {
	Tier          string
	P50, P95      string
	X50, X95, Y   float64
	Label, Height float64
	Samples       int
}

const (
	chartWidth = 560
	barHeight  = 26
)

func (r *Report) charts() (list []chart) {
	for _, n := range r.concurrencies() {
		for _, clock := range []string{clockOwned, clockRunning, clockAgent, clockStarted, clockFirstByte} {
			c := chart{Title: fmt.Sprintf("%s, %d at once, ms", clock, n)}
			most := 0.0
			var p50, p95 []float64
			for _, tier := range tiers {
				values := r.values(OpBoot, tier, n, clock)
				if values == nil {
					continue
				}
				low, high := percentile(values, 50), percentile(values, 95)
				p50, p95 = append(p50, low), append(p95, high)
				most = max(most, high)
				c.Bars = append(c.Bars, bar{
					Tier: tier, P50: fmt.Sprintf("%.1f", low), P95: fmt.Sprintf("%.1f", high),
					Samples: len(values), Height: barHeight - 8,
				})
			}
			for i := range c.Bars {
				b := &c.Bars[i]
				b.Y, b.Label = float64(i*barHeight), float64(i*barHeight+barHeight/2+1)
				b.X50, b.X95 = scale(p50[i], most), scale(p95[i], most)
			}
			if len(c.Bars) > 0 {
				list = append(list, c)
			}
		}
	}
	return list
}

// Height is the chart's, in the units of its SVG.
func (c chart) Height() int { return len(c.Bars) * barHeight }

func scale(v, most float64) float64 {
	// From one millisecond on: below it is all the same here.
	return math.Max(2, chartWidth*math.Log10(math.Max(v, 1))/math.Log10(math.Max(most, 10)))
}

func (r *Report) htmlRatios() (rows [][]string) {
	for _, x := range r.allRatios() {
		rows = append(rows, []string{x.what, x.of, x.to, x.figure(), x.aim, reached(x.reached)})
	}
	return rows
}

// htmlBreakdown is the breakdown's table, with its heading.
func (r *Report) htmlBreakdown() (rows [][]string) {
	parts, there := r.breakdown()
	if len(parts) == 0 {
		return nil
	}
	rows = append(rows, append([]string{"one at a time, p50"}, there...))
	for _, p := range parts {
		row := []string{strings.Repeat("\u2003", p.Depth) + p.Name}
		for _, tier := range there {
			cell := ""
			if ms, ok := p.Took[tier]; ok {
				cell = fmt.Sprintf("%.1f", ms)
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	return rows
}

func (r *Report) htmlFootprints() (rows [][]string) {
	for _, f := range r.Footprints {
		row := []string{f.Tier, fmt.Sprint(f.Machines)}
		for _, v := range []uint64{f.RSS, f.PSS, f.GuestPrivate, f.MonitorPrivate, f.DaemonRSS} {
			row = append(row, fmt.Sprintf("%.2f", mib(v)))
		}
		rows = append(rows, append(row, fmt.Sprintf("%.1f", f.StatusMS)))
	}
	return rows
}
