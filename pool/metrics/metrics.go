// Package metrics shows a pool to Prometheus.
package metrics

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/scrape"
	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
)

// Source is what metrics are read from, at each scrape.
type Source interface {
	Status() (*poolv1.StatusResponse, error)
}

// Serve serves the pool's metrics on address until the result is closed; see
// package scrape.
func Serve(source Source, address string) (*http.Server, error) {
	return scrape.Serve(collector{source}, address)
}

// collector reads the pool's status whenever it is asked.
type collector struct{ source Source }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("bhyve_pool_"+name, help, labels, nil)
}

var (
	machines    = desc("machines", "Machines by template and state.", "template", "state")
	watermark   = desc("watermark", "Watermarks of the hot tier.", "template", "which")
	claims      = desc("claims_total", "Claims by the tier that they were served from; missed ones boot by themselves.", "template", "tier")
	made        = desc("made_total", "Machines that became hot, by what they were made from.", "template", "from")
	evicted     = desc("evicted_total", "Hot machines that were destroyed without a claim.", "template")
	failed      = desc("failed_total", "Machines that did not come up.", "template")
	trouble     = desc("trouble", "1 if something is wrong with the template.", "template")
	checkpoint  = desc("checkpoint_bytes", "Size of the checkpoint on disk; 0 without one.", "template")
	unfit       = desc("claims_unfit_total", "Claims for machines that no template makes.")
	claimed     = desc("claimed_machines", "Machines that were claimed and still run.")
	memoryBytes = desc("memory_bytes", "Memory of the host.", "kind")
	resident    = desc("resident_bytes", "Memory of the daemon itself.")
)

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{machines, watermark, claims, made, evicted, failed, trouble, checkpoint, unfit, claimed, memoryBytes, resident} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	s, err := c.source.Status()
	if err != nil {
		out <- prometheus.NewInvalidMetric(memoryBytes, err)
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	for _, t := range s.Templates {
		name := t.Template.Name
		gauge(machines, float64(t.Hot), name, "hot")
		gauge(machines, float64(t.Making), name, "making")
		gauge(machines, float64(t.Offered), name, "offered")
		gauge(watermark, float64(t.Template.Low), name, "low")
		gauge(watermark, float64(t.Template.High), name, "high")
		counter(claims, t.ClaimsHot, name, "hot")
		counter(claims, t.ClaimsCold, name, "cold")
		counter(claims, t.ClaimsBoot, name, "boot")
		counter(claims, t.ClaimsMissed, name, "missed")
		counter(made, t.MadeCold, name, "cold")
		counter(made, t.MadeBoot, name, "boot")
		counter(evicted, t.Evicted, name)
		counter(failed, t.Failed, name)
		gauge(checkpoint, float64(t.Checkpoint.GetBytes()), name)
		bad := 0.0
		if t.Trouble != "" {
			bad = 1
		}
		gauge(trouble, bad, name)
	}
	counter(unfit, s.ClaimsUnfit)
	gauge(claimed, float64(s.Claimed))
	gauge(resident, float64(s.DaemonRss))
	gauge(memoryBytes, float64(s.Memory.Total), "total")
	gauge(memoryBytes, float64(s.Memory.Available), "available")
	gauge(memoryBytes, float64(s.Memory.Reserve), "reserve")
	gauge(memoryBytes, float64(s.Memory.Promised), "promised")
}
