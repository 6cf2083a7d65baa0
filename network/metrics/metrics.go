// Package metrics shows a network to Prometheus.
package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
)

// Source is what metrics are read from, at each scrape: a *network.Network.
type Source interface {
	List(ctx context.Context) ([]network.Info, error)
	Config() network.Config
}

// scrapeTimeout bounds one scrape; Prometheus's own default is as long.
const scrapeTimeout = 10 * time.Second

// New returns what collects the network's metrics.
func New(source Source) prometheus.Collector { return collector{source} }

type collector struct{ source Source }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("bhyve_network_"+name, help, labels, nil)
}

var (
	sandboxes = desc("sandboxes", "Sandboxes that have an address.")
	addresses = desc("addresses", "Addresses that there are for sandboxes, taken or not.")
	bytes     = desc("bytes_total", "Bytes that a sandbox has sent or received.", "sandbox", "direction")
	packets   = desc("packets_total", "Packets that a sandbox has sent or received, stopped ones among the sent.", "sandbox", "direction")
	stopped   = desc("stopped_packets_total", "Packets that were stopped, by the policy (denied) or for not bearing the sandbox's own addresses (spoofed).", "sandbox", "reason")
)

// Describe implements prometheus.Collector.
func (collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sandboxes, addresses, bytes, packets, stopped} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	infos, err := c.source.List(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(sandboxes, err)
		return
	}
	gauge := func(d *prometheus.Desc, v int) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
	gauge(sandboxes, len(infos))
	gauge(addresses, c.source.Config().Capacity())
	for _, i := range infos {
		for _, m := range []struct {
			d    *prometheus.Desc
			what string
			v    uint64
		}{
			{bytes, "sent", i.Counters.SentBytes},
			{bytes, "received", i.Counters.ReceivedBytes},
			{packets, "sent", i.Counters.SentPackets},
			{packets, "received", i.Counters.ReceivedPackets},
			{stopped, "denied", i.Counters.Denied},
			{stopped, "spoofed", i.Counters.Spoofed},
		} {
			out <- prometheus.MustNewConstMetric(m.d, prometheus.CounterValue, float64(m.v), i.ID, m.what)
		}
	}
}
