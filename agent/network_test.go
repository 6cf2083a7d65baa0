//go:build linux

package agent

import (
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

func TestHostsFile(t *testing.T) {
	nics := []*agentv1.Interface{{Name: "eth0"}}
	for name, tc := range map[string]struct {
		request *agentv1.ConfigureNetworkRequest
		want    string
	}{
		"nothing known yet": {&agentv1.ConfigureNetworkRequest{}, ""},
		"no names":          {&agentv1.ConfigureNetworkRequest{Interfaces: nics}, agentproto.LocalHosts},
		"names": {&agentv1.ConfigureNetworkRequest{Interfaces: nics, Hosts: []*agentv1.HostEntry{
			{Address: "10.77.0.10", Names: []string{"web", "web.example.org"}}, {Address: "2001:db8::1", Names: []string{"web"}},
		}}, agentproto.LocalHosts + "10.77.0.10\tweb web.example.org\n2001:db8::1\tweb\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := string(hostsFile(tc.request)); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
