package bench

import (
	"bytes"
	"encoding/json"
	"html"
	"strings"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

func TestPercentileIsNearestRank(t *testing.T) {
	values := []float64{30, 10, 20, 50, 40}
	for p, want := range map[float64]float64{1: 10, 50: 30, 60: 30, 61: 40, 95: 50, 99: 50, 100: 50} {
		if got := percentile(values, p); got != want {
			t.Errorf("p%v of %v is %v, want %v", p, values, got, want)
		}
	}
}

func boots(tier string, concurrency int, clock string, values ...float64) (list []Sample) {
	for _, v := range values {
		list = append(list, Sample{Tier: tier, Op: OpBoot, Concurrency: concurrency, Clocks: map[string]float64{clock: v}})
	}
	return list
}

func someReport() *Report {
	r := newReport(time.Unix(0, 0))
	r.MemoryMiB = 256
	r.Samples = append(r.Samples, boots(TierRunc, 1, clockFirstByte, 80)...)
	r.Samples = append(r.Samples, boots(TierBootFull, 1, clockAgent, 3000, 3200, 3400)...)
	r.Samples = append(r.Samples, boots(TierPrewarm, 1, clockAgent, 32)...)
	r.Samples = append(r.Samples, boots(TierPrewarm, 1, clockFirstByte, 40)...)
	r.Samples = append(r.Samples, boots(TierPrewarm, 50, clockAgent, 320)...)
	r.Footprints = []Footprint{{Tier: TierDurablePrewarm, Machines: 10, GuestPrivate: 3 << 20}}
	r.Refills = []Refill{{Tier: TierDurablePrewarm, Machines: 10, WallMS: 2500, CPUMS: 300, Rebuild: true}}
	return r
}

func TestMarkdownShowsWhatWasMeasured(t *testing.T) {
	got := someReport().Markdown()
	for _, row := range []string{
		"| boot | 1 | d: first byte | runc | 1 | 80.0 | 80.0 | 80.0 | 80.0 |\n",
		"| boot | 1 | c: agent answered | boot-full | 3 | 3200.0 | 3200.0 | 3400.0 | 3400.0 |\n",
		"| boot | 50 | c: agent answered | prewarm | 1 | 320.0 | 320.0 | 320.0 | 320.0 |\n",
		"| agent answered, p50 | prewarm | boot-full | 0.010 | ≤ 1/100 | reached |\n",
		"| agent answered, p95 of 50 at once to p50 of one | prewarm | prewarm | 10.0 | ≤ 5 | missed |\n",
		"| first byte, p50 | prewarm | runc | 0.500 | ≤ 1 | reached |\n",
		"| guest's own pages, each | durable-prewarm | 10 machines | 3.0 | ≤ 4 MiB | reached |\n",
		"| durable-prewarm | after everything was killed | 10 | 2.5 | 300 |\n",
		"| durable-prewarm | 10 | 0.0 | 0.0 | 3.00 | 0.0 | 0.0 | 0.0 |\n",
	} {
		if !strings.Contains(got, row) {
			t.Errorf("no row %q in\n%s", row, got)
		}
	}
	if strings.Contains(got, clockOwned) {
		t.Errorf("a clock without samples is in\n%s", got)
	}
}

// What is not in the tables is said, and what they are to be compared with.
func TestNotesOnTheTables(t *testing.T) {
	r := someReport()
	r.MaxBoots = 10
	r.Samples = append(r.Samples, boots(TierDurablePrewarm, 50, clockAgent, 100)...)
	r.Footprints = []Footprint{
		{Tier: TierDurablePrewarm, Machines: 100, PSS: 28 << 20, GuestPrivate: 1 << 20, MonitorPrivate: 26 << 20},
		{Tier: TierDurablePrewarm, Machines: 10, PSS: 33 << 20},
		{Tier: TierPrewarm, Machines: 10, PSS: 300 << 20},
	}
	page, err := r.HTML()
	if err != nil {
		t.Fatal(err)
	}
	for _, note := range []string{
		// There is a row of prewarm.
		"Not measured with 50 at once: boot-full. Each of their machines costs a boot, and -max-boots was 10.",
		"A thousand machines of durable-prewarm, by the PSS of 100: 27.3 GiB, all in, of which 25.4 GiB are the monitors' own and 1.0 GiB the guests' pages.",
	} {
		if md := r.Markdown(); strings.Count(md, note) != 1 {
			t.Errorf("no %q in\n%s", note, md)
		}
		if strings.Count(html.UnescapeString(string(page)), note) != 1 {
			t.Errorf("no %q in the page", note)
		}
	}
	if n := len(r.thousands()); n != 1 {
		t.Errorf("%d notes on a thousand machines", n)
	}
}

// The page has the samples in it, and asks for nothing from elsewhere.
func TestHTMLIsComplete(t *testing.T) {
	r := someReport()
	r.Samples[0].Proof = pattern.Boot{Kernel: "</script><b>"}
	got, err := r.HTML()
	if err != nil {
		t.Fatal(err)
	}
	_, data, found := bytes.Cut(got, []byte(`id="samples">`))
	data, _, _ = bytes.Cut(data, []byte("</script>"))
	var back Report
	if err := json.Unmarshal(data, &back); !found || err != nil || len(back.Samples) != len(r.Samples) || back.Samples[0].Proof.Kernel != r.Samples[0].Proof.Kernel {
		t.Errorf("samples of the page: %v, %+v", err, back.Samples)
	}
	for _, foreign := range []string{"http:", "https:", "src=", "<link", "@import"} {
		if bytes.Contains(got, []byte(foreign)) {
			t.Errorf("the page has %q in it", foreign)
		}
	}
}

func TestBreakdownAddsUp(t *testing.T) {
	r := newReport(time.Unix(0, 0))
	runc := boots(TierRunc, 1, clockFirstByte, 80)[0]
	runc.Clocks[clockCreated], runc.Clocks[clockStarted] = 60, 75
	hot := boots(TierPrewarm, 1, clockFirstByte, 400)[0]
	hot.Clocks[clockCreated], hot.Clocks[clockStarted] = 300, 360
	// In the order of their ends, as they are noted.
	hot.Steps = []Step{{"claim", 2, 5}, {"machine", 1, 40}, {"task", 50, 200}, {"create", 0, 270}, {"start", 285, 50}}
	r.Samples = []Sample{runc, hot}
	got := r.Markdown()
	for _, row := range []string{
		"| where the time goes, one at a time, p50 | runc | prewarm |\n",
		"| containerd, and the shim's own start | 60.0 | 30.0 |\n",
		"| create | | 270.0 |\n| &emsp;machine | | 40.0 |\n| &emsp;&emsp;claim | | 5.0 |\n| &emsp;task | | 200.0 |\n",
		"| containerd, between Create and Start | 15.0 | 10.0 |\n| start | | 50.0 |\n",
		"| from Start's end to the first byte | 5.0 | 40.0 |\n",
	} {
		if !strings.Contains(got, row) {
			t.Errorf("no %q in\n%s", row, got)
		}
	}
}
