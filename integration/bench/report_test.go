package bench

import (
	"strings"
	"testing"
	"time"
)

func TestPercentileIsNearestRank(t *testing.T) {
	values := []float64{30, 10, 20, 50, 40}
	for p, want := range map[float64]float64{1: 10, 50: 30, 60: 30, 61: 40, 95: 50, 99: 50, 100: 50} {
		if got := percentile(values, p); got != want {
			t.Errorf("p%v of %v is %v, want %v", p, values, got, want)
		}
	}
}

func TestMarkdownShowsWhatWasMeasured(t *testing.T) {
	r := newReport(time.Unix(0, 0))
	r.Samples = []Sample{
		{Runtime: "one", Op: OpBoot, Clocks: map[string]float64{clockStarted: 12.34}},
		{Runtime: "two", Op: OpBoot, Clocks: map[string]float64{clockStarted: 56}},
	}
	got := r.Markdown()
	for _, row := range []string{
		"| boot | d: Task.Start returned | one | 1 | 12.3 | 12.3 | 12.3 |\n",
		"| boot | d: Task.Start returned | two | 1 | 56.0 | 56.0 | 56.0 |\n",
	} {
		if !strings.Contains(got, row) {
			t.Errorf("no row %q in\n%s", row, got)
		}
	}
	if strings.Contains(got, clockAgent) {
		t.Errorf("a clock without samples is in\n%s", got)
	}
}
