package sandbox

import (
	"bytes"
	"context"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

// A guest that was restored knows its device by an address of before, and is told
// to forget the rest before anything is known of what comes in its place.
func TestRestoredInterface(t *testing.T) {
	b := newBed(t)
	b.running("c1")
	before, own := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	n := &network{}
	n.nic.MAC = own
	n.resumes(before)
	b.vm.network = n
	var asked atomic.Int32
	b.agent().on("network.Configure", func(context.Context) error { asked.Add(1); return nil })
	must(t, b.vm.configureNetwork(b.within()))
	if asked.Load() != 1 || n.told {
		t.Errorf("the guest was asked %d times, and said to know its network (%t)", asked.Load(), n.told)
	}
	n.guest = &agentv1.ConfigureNetworkRequest{Interfaces: []*agentv1.Interface{{Device: own, Mac: own}}}
	n.resumes(before)
	if is := n.guest.Interfaces[0]; !bytes.Equal(is.Device, before) || !bytes.Equal(is.Mac, own) || !bytes.Equal(n.address(), before) {
		t.Errorf("it is %v, and has %s", is, n.address())
	}
	must(t, b.vm.configureNetwork(b.within()))
	if !n.told || !bytes.Equal(n.address(), own) {
		t.Errorf("the guest knows its network (%t), and has %s", n.told, n.address())
	}
	b.vm.network = nil
	if got := b.vm.network.address(); got != nil {
		t.Errorf("no interface has %s", got)
	}
}

func TestHosts(t *testing.T) {
	addressed := &agentv1.ConfigureNetworkRequest{Interfaces: []*agentv1.Interface{{Name: "eth0", Addresses: []string{"10.77.0.10/32", "fe80::1/64", "2001:db8::1/64"}}}}
	for _, tc := range []struct {
		name string
		of   *agentv1.ConfigureNetworkRequest
		want []string
	}{
		{"web", addressed, []string{"10.77.0.10 web", "2001:db8::1 web"}},
		{"web", &agentv1.ConfigureNetworkRequest{}, nil},
		{"", addressed, nil},
		{"web\n198.51.100.1 bank.example.org", addressed, nil},
		{"web#", addressed, nil},
	} {
		var got []string
		for _, e := range hostsOf(tc.name, tc.of) {
			got = append(got, e.Address+" "+strings.Join(e.Names, " "))
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%q: got %q, want %q", tc.name, got, tc.want)
		}
	}
}
