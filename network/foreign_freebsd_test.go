package network

import (
	"context"
	"strings"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// theirRules are an anchor of somebody else's: every kind of rule that there is, and a
// table.
const theirRules = `table <theirs> persist { 198.51.100.0/24, 203.0.113.200 }
ether pass in quick on uplink proto 0x88cc
nat on uplink inet from <theirs> to any -> 203.0.113.1
rdr on uplink inet proto tcp from any to 203.0.113.1 port 2222 -> 198.51.100.7 port 22
block return in quick on uplink inet proto tcp from <theirs> to any port 25
pass out on uplink inet proto udp all keep state (max 100)
`

// theirs is all that is in pf and not ours, as pfctl(8) tells it.
func (r *rig) theirs() string {
	r.t.Helper()
	var all strings.Builder
	for _, of := range [][]string{nil, {"-a", "theirs/a"}, {"-a", "cubed/a"}} {
		for _, what := range []string{"ether", "nat", "rules", "Tables"} {
			all.WriteString(r.run(append(append([]string{"/sbin/pfctl"}, of...), "-s", what)...))
		}
	}
	all.WriteString(r.run("/sbin/pfctl", "-a", "theirs/a", "-t", "theirs", "-T", "show"))
	return all.String()
}

// What others have in pf stays, byte for byte: the host's own rules, anchors of other
// teams, and one whose name begins as ours do.
func TestForeignAnchorsStay(t *testing.T) {
	r := newRig(t, policy.Policy{})
	lines := strings.Replace(ruleset, "\nnat-anchor", "\nether anchor \"theirs/*\"\nnat-anchor \"theirs/*\"\nrdr-anchor \"theirs/*\"\nnat-anchor", 1)
	r.load(strings.Replace(lines, "\nanchor", "\nanchor \"theirs/*\"\nanchor", 1))
	for _, anchor := range []string{"theirs/a", "cubed/a"} {
		t.Cleanup(func() { _, _ = run(context.Background(), "", "/sbin/pfctl", "-q", "-a", anchor, "-F", "all") })
		if _, err := run(t.Context(), theirRules, "/sbin/pfctl", "-q", "-a", anchor, "-f", "-"); err != nil && !strings.Contains(err.Error(), "pf.os") {
			t.Fatal(err)
		}
	}
	before := r.theirs()
	for _, want := range []string{"0x88cc", "port = 2222", "port = 25", "keep state (max 100", "198.51.100.0/24", `anchor "theirs/*"`, `anchor "cube/*"`} {
		if !strings.Contains(strings.ReplaceAll(before, "smtp", "25"), want) {
			t.Fatalf("pf was to have %q: it has\n%s", want, before)
		}
	}
	other := r.beside("cubenet1", "10.78.0.0/24")
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"Add", func() error { _, err := r.net.Add(t.Context(), Request{ID: "a"}); return err }},
		{"a policy with a published port", func() error {
			return r.net.SetPolicy(t.Context(), "a", policy.Policy{
				Allow:   []policy.Rule{rule("tcp", nil, friend+"/32")},
				Publish: []policy.Port{{Host: 8080, Guest: 80}},
			})
		}},
		{"another network", func() error { _, err := other.net.Add(t.Context(), Request{ID: "a"}); return err }},
		{"Del", func() error { _, err := r.net.Del(t.Context(), "a"); return err }},
		{"GC", func() error { _, err := other.net.GC(t.Context(), func(string) bool { return false }); return err }},
		{"Destroy", func() error { return r.net.Destroy(context.Background()) }},
	} {
		r.in(step.do)
		if after := r.theirs(); after != before {
			t.Fatalf("after %s pf has\n%s\nand had\n%s", step.what, after, before)
		}
	}
}
