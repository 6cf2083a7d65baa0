package pf

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

var update = flag.Bool("update", false, "write golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("rules differ from %s (-update writes it):\n%s", path, got)
	}
}

var full = policy.Policy{
	Deny: []policy.Rule{
		{Peers: []string{"198.51.100.0/24", "198.51.100.7", "203.0.113.9"}},
		{Peers: []string{"203.0.113.0/24"}, Protocol: "tcp", Ports: []string{"25", "465-587"}},
		{Peers: []string{policy.HostPeer}, Protocol: "tcp", Ports: []string{"22"}},
	},
	Allow: []policy.Rule{
		{Peers: []string{"0.0.0.0/0"}, Protocol: "tcp", Ports: []string{"80", "443"}},
		{Peers: []string{"10.1.0.0/16", "10.2.0.0/16"}},
		{Peers: []string{policy.HostPeer}, Protocol: "tcp"},
	},
	Accept:   []policy.Rule{{Peers: []string{"10.77.0.11"}, Protocol: "udp", Ports: []string{"5353"}}},
	Publish:  []policy.Port{{Host: 8080, Guest: 80}, {HostIP: netip.MustParseAddr("192.0.2.1"), Host: 8053, Guest: 53, Protocol: "udp"}, {HostIP: netip.MustParseAddr("127.0.0.1"), Host: 8081, Guest: 81}},
	MaxFlows: 100,
}

func sandbox(t *testing.T, p policy.Policy) Sandbox {
	t.Helper()
	c, err := p.Compile([]netip.Addr{netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("192.0.2.53")})
	if err != nil {
		t.Fatal(err)
	}
	return Sandbox{Name: "sandbox-a.1", Tap: "tap100", Bridge: "cubenet0", Address: netip.MustParseAddr("10.77.0.10"), Policy: c}
}

func TestGolden(t *testing.T) {
	for name, p := range map[string]policy.Policy{"default.pf": {}, "full.pf": full} {
		golden(t, name, sandbox(t, p).Rules())
	}
	d := Dispatch{Bridge: "cubenet0", Subnet: netip.MustParsePrefix("10.77.0.0/24"), Egress: []string{"em0", "em1"}, Sandboxes: []Sandbox{
		{Name: "sandbox-a.1", Tap: "tap100", Bridge: "cubenet0", Address: netip.MustParseAddr("10.77.0.10")},
		{Name: "sandbox-b", Tap: "tap101", Bridge: "cubenet0", Address: netip.MustParseAddr("10.77.0.11"), Pipe: 40002},
		{Name: "sandbox-c", Tap: "tap102", Bridge: "cubenet0", Address: netip.MustParseAddr("10.77.0.12"), Pipe: 40004},
	}}
	golden(t, "dispatch.pf", d.Rules())
}

func TestCheckMain(t *testing.T) {
	printed := `ether block in quick on cubetap l3 all
ether anchor "cube/*" on cubeguest l3 all
nat-anchor "cube/*" all
rdr-anchor "cube/*" all
pass in quick on bhyvelink inet6 proto tcp all flags A/A no state
anchor "cube/*" all
block drop quick on cubeguest all
pass all flags S/SA keep state
`
	for name, tc := range map[string]struct {
		rules string
		ok    bool
	}{
		"as shipped":                  {MainRules, true},
		"as printed, among others":    {printed, true},
		"other anchors":               {"anchor \"ftp-proxy/*\" all\n" + printed, true},
		"nothing":                     {"", false},
		"no fence for frames":         {strings.Replace(printed, "ether block in quick on cubetap l3 all\n", "", 1), false},
		"no place for bandwidths":     {strings.Replace(printed, "ether anchor \"cube/*\" on cubeguest l3 all\n", "", 1), false},
		"one of another interface":    {strings.Replace(printed, "cubeguest l3 all", "em0 l3 all", 1), false},
		"no nat":                      {strings.Replace(printed, "nat-anchor", "nat-anchor-not", 1), false},
		"only on one interface":       {strings.Replace(printed, "\nanchor \"cube/*\" all", "\nanchor \"cube/*\" on em0 all", 1), false},
		"no fence":                    {strings.Replace(printed, "block drop quick on cubeguest all\n", "", 1), false},
		"fence before anchor":         {"block drop quick on cubeguest all\n" + printed, false},
		"everything passes before it": {"pass quick all\n" + printed, false},
	} {
		if err := checkMain([]byte(tc.rules)); (err == nil) != tc.ok || err != nil && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStates(t *testing.T) {
	guest := netip.MustParseAddr("10.77.0.10")
	out := `cubenet0 tcp 203.0.113.10:80 <- 10.77.0.10:4000       ESTABLISHED:ESTABLISHED
   [1 + 2]  [3 + 4]
   age 00:00:01, expires in 24:00:00, 1:1 pkts, 40:40 bytes, anchor 1, rule 2
   id: 0000000000000001 creatorid: 0000000a
em0 tcp 192.0.2.1:61000 (10.77.0.10:4000) -> 203.0.113.10:80       ESTABLISHED:ESTABLISHED
   id: 0000000000000002 creatorid: 0000000a
em0 udp 10.77.0.10:80 (192.0.2.1:8080) <- 198.51.100.9:5000       MULTIPLE:MULTIPLE
   id: 0000000000000003 creatorid: 0000000a
all tcp 10.77.0.110:4000 -> 203.0.113.10:80       ESTABLISHED:ESTABLISHED
   id: 0000000000000004 creatorid: 0000000a
cubenet0 icmp 203.0.113.66:8 <- 10.77.0.10:7       0:0
   id: 0000000000000005 creatorid: 0000000a
all esp 192.0.2.1 -> 192.0.2.2       MULTIPLE:MULTIPLE
nonsense
`
	c := Control{Run: func(context.Context, string, ...string) ([]byte, error) { return []byte(out), nil }}
	states, err := c.States(t.Context(), guest)
	if err != nil {
		t.Fatal(err)
	}
	ap := netip.MustParseAddrPort
	want := []State{
		{"0000000000000001/0000000a", ap("10.77.0.10:4000"), ap("203.0.113.10:80"), 6, true},
		{"0000000000000002/0000000a", ap("10.77.0.10:4000"), ap("203.0.113.10:80"), 6, true},
		{"0000000000000003/0000000a", ap("198.51.100.9:5000"), ap("10.77.0.10:80"), 17, true},
		{"0000000000000005/0000000a", ap("10.77.0.10:7"), ap("203.0.113.66:8"), 1, true},
	}
	if !slices.Equal(states, want) {
		t.Errorf("states: %v, want %v", states, want)
	}
	s := sandbox(t, policy.Policy{
		Allow:   []policy.Rule{{Peers: []string{"203.0.113.0/24"}, Protocol: "tcp"}},
		Publish: []policy.Port{{Host: 8080, Guest: 80, Protocol: "udp"}},
	})
	none := func(netip.Addr) bool { return false }
	if got := Outlawed(s, states, none); !slices.Equal(got, want[3:]) {
		t.Errorf("outlawed: %v, want what is pinged", got)
	}
	host := func(a netip.Addr) bool { return a == ap("203.0.113.10:80").Addr() }
	if got := Outlawed(s, states, host); len(got) != 3 {
		t.Errorf("outlawed: %v, want what goes to the host as well, as that is not allowed", got)
	}
}

func TestOpenFlows(t *testing.T) {
	for line, want := range map[string]bool{
		"cubenet0 tcp 203.0.113.10:80 <- 10.77.0.10:4000       ESTABLISHED:ESTABLISHED": true,
		"cubenet0 tcp 203.0.113.10:81 <- 10.77.0.10:4000       CLOSED:SYN_SENT":         false,
		"cubenet0 tcp 203.0.113.10:80 <- 10.77.0.10:4000       FIN_WAIT_2:FIN_WAIT_2":   false,
		"cubenet0 udp 203.0.113.10:53 <- 10.77.0.10:4000       SINGLE:MULTIPLE":         true,
		"cubenet0 udp 203.0.113.10:53 <- 10.77.0.10:4000       NO_TRAFFIC:SINGLE":       false,
	} {
		if s, ok := parseState(line); !ok || s.Open != want {
			t.Errorf("%s: open is %v, want %v", line, s.Open, want)
		}
	}
}

// A flow to an address that a name has opened is as good as one to an address that
// is allowed, at the services of that name and where nothing denies it.
func TestFlowsToNames(t *testing.T) {
	s := sandbox(t, policy.Policy{
		Deny:  []policy.Rule{{Peers: []string{"203.0.113.66"}}},
		Allow: []policy.Rule{{Peers: []string{"a.example.org"}, Protocol: "tcp", Ports: []string{"80"}}, {Peers: []string{"b.example.org"}}},
	})
	addr := netip.MustParseAddr
	s.Opened = [][]netip.Addr{{addr("203.0.113.10"), addr("203.0.113.66")}, {addr("203.0.113.11")}}
	to := func(target string) State {
		return State{From: netip.AddrPortFrom(s.Address, 4000), To: netip.MustParseAddrPort(target), Protocol: 6}
	}
	kept := []State{to("203.0.113.10:80"), to("203.0.113.11:81")}
	cut := []State{to("203.0.113.10:81"), to("203.0.113.66:80"), to("203.0.113.12:80")}
	if got := Outlawed(s, append(slices.Clone(kept), cut...), func(netip.Addr) bool { return false }); !slices.Equal(got, cut) {
		t.Errorf("outlawed: %v, want %v", got, cut)
	}
	golden(t, "names.pf", s.Rules())
}

// recorder is a pfctl that remembers, and knows some anchors.
type recorder struct {
	anchors string
	labels  string
	calls   []string
	fail    error
}

func (r *recorder) run(_ context.Context, stdin string, argv ...string) ([]byte, error) {
	r.calls = append(r.calls, fmt.Sprintf("%q < %q", argv, stdin))
	if r.fail != nil {
		return nil, r.fail
	}
	switch argv[len(argv)-1] {
	case "Anchors":
		return []byte(r.anchors), nil
	case "labels":
		return []byte(r.labels), nil
	}
	return nil, nil
}

// What an id has in it never becomes a further argument, let alone a command.
func TestArguments(t *testing.T) {
	r := &recorder{anchors: "  cube/cubenet0/sandbox-a;reboot\n  cube/cubenet0/sandbox-b\n"}
	c := Control{Run: r.run}
	if err := c.Load(t.Context(), "cube/cubenet0/sandbox-a;reboot", "block all\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(t.Context(), Sandbox{Name: "sandbox-a;reboot", Bridge: "cubenet0"}); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(t.Context(), Sandbox{Name: "none", Bridge: "cubenet0"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.KillAll(t.Context(), netip.MustParseAddr("10.77.0.10")); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`["/sbin/pfctl" "-a" "cube/cubenet0/sandbox-a;reboot" "-f" "-"] < "block all\n"`,
		`["/sbin/pfctl" "-a" "cube/cubenet0" "-s" "Anchors"] < ""`,
		`["/sbin/pfctl" "-a" "cube/cubenet0/sandbox-a;reboot" "-F" "nat"] < ""`,
		`["/sbin/pfctl" "-a" "cube/cubenet0/sandbox-a;reboot" "-F" "rules"] < ""`,
		`["/sbin/pfctl" "-a" "cube/cubenet0/sandbox-a;reboot" "-F" "Tables"] < ""`,
		`["/sbin/pfctl" "-a" "cube/cubenet0" "-s" "Anchors"] < ""`,
		`["/sbin/pfctl" "-k" "10.77.0.10"] < ""`,
		`["/sbin/pfctl" "-k" "0.0.0.0/0" "-k" "10.77.0.10"] < ""`,
		`["/sbin/pfctl" "-k" "nat" "-k" "10.77.0.10"] < ""`,
		`["/sbin/pfctl" "-vv" "-s" "states"] < ""`,
	}
	if !slices.Equal(r.calls, want) {
		t.Errorf("ran:\n%s\nwant:\n%s", strings.Join(r.calls, "\n"), strings.Join(want, "\n"))
	}
	r.fail = errors.New("pfctl: it says no")
	if err := c.Load(t.Context(), "cube/x", ""); !errors.Is(err, r.fail) {
		t.Errorf("got %v, want what pfctl said", err)
	}
}

// What finds pf busy is done again.
func TestBusy(t *testing.T) {
	tries := 0
	c := Control{Run: func(context.Context, string, ...string) ([]byte, error) {
		if tries++; tries < 3 {
			return nil, errors.New("pfctl: DIOCADDRULE: Device busy")
		}
		return nil, nil
	}}
	if err := c.Load(t.Context(), "cube/x", "block all\n"); err != nil || tries != 3 {
		t.Errorf("%v after %d tries", err, tries)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tries = 0
	if err := c.Load(ctx, "cube/x", "block all\n"); err == nil || tries != 1 {
		t.Errorf("%v after %d tries with no time left, want an error after one", err, tries)
	}
}

func TestNoRoom(t *testing.T) {
	r := &recorder{fail: errors.New("/sbin/pfctl -a cube/x -f -: exit status 1: pfctl: pfctl_rules")}
	if err := (Control{Run: r.run}).Load(t.Context(), "cube/x", ""); !errdefs.IsResourceExhausted(err) || !errors.Is(err, r.fail) {
		t.Errorf("got %v, want that pf has no room", err)
	}
	if len(r.calls) != 2 || !strings.Contains(r.calls[1], `"-F" "ethernet"`) {
		t.Errorf("ran %q", r.calls)
	}
}

func TestDenied(t *testing.T) {
	s := sandbox(t, policy.Policy{})
	r := &recorder{labels: "spoofed:sandbox-a.1 10 1 40 1 40 0 0 0\ndenied:sandbox-a.1 9 2 80 2 80 0 0 0\ndenied:sandbox-a.1 9 3 80 3 80 0 0 0\nother 1 7 1 1 1 0 0 0\n"}
	got, err := Control{Run: r.run}.Denied(t.Context(), s)
	if err != nil || got != (Denied{Denied: 5, Spoofed: 1}) {
		t.Errorf("counters %+v, %v", got, err)
	}
}
