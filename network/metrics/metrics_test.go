package metrics

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
)

type source struct{ err error }

func (source) Config() network.Config { return network.DefaultConfig() }

func (s source) List(context.Context) ([]network.Info, error) {
	return []network.Info{{
		Result:   network.Result{ID: "a"},
		Counters: network.Counters{SentPackets: 1, SentBytes: 2, ReceivedPackets: 3, ReceivedBytes: 4, Denied: 5, Spoofed: 6},
	}}, s.err
}

func TestCollect(t *testing.T) {
	want := `
# HELP bhyve_network_addresses Addresses that there are for sandboxes, taken or not.
# TYPE bhyve_network_addresses gauge
bhyve_network_addresses 191
# HELP bhyve_network_bytes_total Bytes that a sandbox has sent or received.
# TYPE bhyve_network_bytes_total counter
bhyve_network_bytes_total{direction="received",sandbox="a"} 4
bhyve_network_bytes_total{direction="sent",sandbox="a"} 2
# HELP bhyve_network_packets_total Packets that a sandbox has sent or received, stopped ones among the sent.
# TYPE bhyve_network_packets_total counter
bhyve_network_packets_total{direction="received",sandbox="a"} 3
bhyve_network_packets_total{direction="sent",sandbox="a"} 1
# HELP bhyve_network_sandboxes Sandboxes that have an address.
# TYPE bhyve_network_sandboxes gauge
bhyve_network_sandboxes 1
# HELP bhyve_network_stopped_packets_total Packets that were stopped, by the policy (denied) or for not bearing the sandbox's own addresses (spoofed).
# TYPE bhyve_network_stopped_packets_total counter
bhyve_network_stopped_packets_total{reason="denied",sandbox="a"} 5
bhyve_network_stopped_packets_total{reason="spoofed",sandbox="a"} 6
`
	if err := testutil.CollectAndCompare(New(source{}), strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	broken := errors.New("broken")
	if err := testutil.CollectAndCompare(New(source{err: broken}), strings.NewReader("")); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("a source that fails: %v", err)
	}
}
