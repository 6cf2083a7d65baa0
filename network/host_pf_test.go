package network

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/pf"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

var update = flag.Bool("update", false, "write golden files")

// system is as much of a FreeBSD host as the tools say of it.
type system struct {
	log strings.Builder
	// ifaces are descriptions by name; members are those of the bridge.
	ifaces  map[string]string
	members []string
	address bool
	knobs   bool
	anchors map[string]string
	main    string
	states  string
	// mute is whether interfaces cannot be described.
	mute bool
	// room is how many anchors there can be, 0 for any number.
	room int
	// pipes are dummynet's rates by number, nil where it is not loaded.
	pipes map[int]uint64
}

func newSystem() *system {
	return &system{ifaces: map[string]string{}, anchors: map[string]string{}, main: pf.MainRules, pipes: map[int]uint64{}}
}

func (s *system) run(_ context.Context, stdin string, argv ...string) ([]byte, error) {
	fmt.Fprintln(&s.log, strings.Join(argv, " "))
	for line := range strings.Lines(stdin) {
		s.log.WriteString("  < " + line)
	}
	args := argv[1:]
	switch argv[0] {
	case ifconfig:
		return s.ifconfig(args)
	case sysctl:
		s.knobs = true
	case netstat:
		return []byte(`{"statistics": {"interface": [{"name": "tap100", "received-packets": 3, "received-bytes": 30, "sent-packets": 4, "sent-bytes": 40}]}}`), nil
	case "/sbin/pfctl":
		return s.pfctl(args, stdin)
	case "/sbin/dnctl":
		return s.dnctl(args, stdin)
	}
	return nil, nil
}

func (s *system) egress(string) ([]string, error) { return []string{"em0"}, nil }
func (s *system) isUp(string) (bool, error)       { return false, nil }

func (s *system) create(name string) error {
	if _, there := s.ifaces[name]; there {
		return fs.ErrExist
	}
	s.ifaces[name] = ""
	return nil
}

func (s *system) describe(name, text string) error {
	if s.mute {
		return errors.New("cut off")
	}
	s.ifaces[name] = text
	return nil
}

func (s *system) description(name string) (string, error) {
	text, there := s.ifaces[name]
	if !there {
		return "", fs.ErrNotExist
	}
	return text, nil
}

// knob is 0 until all are set.
func (s *system) knob(name string) (uint32, error) {
	for _, k := range knobs {
		if k.name == name && s.knobs {
			return k.value, nil
		}
	}
	return 0, nil
}

func (s *system) ifconfig(args []string) ([]byte, error) {
	name := args[0]
	switch {
	case name == "-g":
		var taps []string
		for n := range s.ifaces {
			if strings.HasPrefix(n, "tap") {
				taps = append(taps, n)
			}
		}
		return []byte(strings.Join(taps, "\n")), nil
	case name == "-l":
		return []byte(strings.Join(slices.Sorted(maps.Keys(s.ifaces)), " ")), nil
	case name == "bridge":
		s.ifaces[args[3]] = ""
		return nil, nil
	}
	description, ok := s.ifaces[name]
	if !ok {
		return nil, fmt.Errorf("ifconfig: interface %s does not exist", name)
	}
	switch {
	case len(args) == 1:
		out := name + ": flags=8843<UP,RUNNING>\n\tdescription: " + description + "\n\tgroups: tap " + pf.Group + " " + pf.TapGroup + "\n"
		if s.address {
			out += "\tinet 10.77.0.1 netmask 0xffffff00\n"
		}
		for _, m := range s.members {
			out += "\tmember: " + m + " flags=840<PRIVATE,VLANFILTER>\n"
		}
		return []byte(out), nil
	case args[1] == "inet":
		s.address = true
	case len(args) > 2 && args[1] == "addm":
		s.members = append(s.members, args[2])
	case args[1] == "destroy":
		delete(s.ifaces, name)
		s.members = slices.DeleteFunc(s.members, func(m string) bool { return m == name })
	}
	return nil, nil
}

func (s *system) pfctl(args []string, stdin string) ([]byte, error) {
	all := strings.Join(args, " ")
	switch {
	case all == "-s info":
		return []byte("Status: Enabled for 0 days\n"), nil
	case all == "-s nat" || all == "-s ether":
		return nil, nil
	case all == "-s rules":
		return []byte(s.main), nil
	case all == "-vv -s states":
		return []byte(s.states), nil
	case len(args) == 4 && args[3] == "Anchors":
		var names []string
		for n := range s.anchors {
			if strings.HasPrefix(n, args[1]+"/") {
				names = append(names, "  "+n)
			}
		}
		slices.Sort(names)
		return []byte(strings.Join(names, "\n")), nil
	case args[0] == "-k":
		s.states = ""
	case len(args) == 4 && slices.Contains([]string{"rules", "ether"}, args[3]) && args[2] == "-s":
		return []byte(s.anchors[args[1]]), nil
	case len(args) == 4 && args[2] == "-f":
		if _, there := s.anchors[args[1]]; !there && s.room > 0 && len(s.anchors) >= s.room {
			return nil, errors.New("exit status 1: pfctl: pfctl_rules")
		}
		s.anchors[args[1]] = stdin
	case len(args) == 4 && args[3] == "Tables":
		delete(s.anchors, args[1])
	}
	return nil, nil
}

func freebsdNetwork(t *testing.T, s *system) *Network {
	t.Helper()
	cfg := DefaultConfig()
	cfg.State = filepath.Join(t.TempDir(), "state")
	cfg.DNS = []netip.Addr{netip.MustParseAddr("192.0.2.53")}
	return freebsdNetworkOf(cfg, s)
}

func freebsdNetworkOf(cfg Config, s *system) *Network {
	st := store{dir: filepath.Join(cfg.State, cfg.Bridge)}
	return newNetwork(cfg, st, &freebsd{
		cfg: cfg, store: st, pf: pf.Control{Run: s.run}, kernel: s,
	})
}

// What FreeBSD's tools are told, from the first Add to the last Del.
func TestFreeBSDTranscript(t *testing.T) {
	s := newSystem()
	n := freebsdNetwork(t, s)
	ctx := t.Context()
	result, err := n.Add(ctx, Request{ID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Check(ctx, "a"); err != nil {
		t.Error(err)
	}
	s.log.WriteString("# policy\n")
	s.states = "cubenet0 tcp 203.0.113.10:80 <- " + result.Address.String() + ":4000       ESTABLISHED:ESTABLISHED\n" +
		"   [1 + 2]  [3 + 4]\n   age 00:00:01, expires in 24:00:00, 1:1 pkts, 40:40 bytes, anchor 1, rule 2\n   id: 4823e84500000003 creatorid: 00000002\n"
	if err := n.SetPolicy(ctx, "a", policy.Policy{Deny: []policy.Rule{{Peers: []string{"203.0.113.0/24"}}}}); err != nil {
		t.Fatal(err)
	}
	if info, err := n.Show(ctx, "a"); err != nil || info.Counters.SentBytes != 30 || info.Counters.ReceivedPackets != 4 {
		t.Errorf("%+v, %v", info, err)
	}
	s.log.WriteString("# del\n")
	s.states = "cubenet0 udp 10.77.0.1:53 <- " + result.Address.String() + ":4000       MULTIPLE:MULTIPLE\n"
	released, err := n.Del(ctx, "a")
	if err != nil || released != (Released{StatesBefore: 1}) {
		t.Errorf("released %+v, %v", released, err)
	}
	if len(s.ifaces) != 1 || len(s.anchors) != 1 || len(s.members) != 0 {
		t.Errorf("left: %+v", s)
	}
	s.log.WriteString("# destroy\n")
	if err := n.Destroy(ctx); err != nil || len(s.ifaces) != 0 {
		t.Errorf("left: %+v, %v", s.ifaces, err)
	}
	// What is above is somebody else's, and stays if there is nothing else in it.
	if _, err := os.Stat(filepath.Dir(n.cfg.State)); err != nil {
		t.Error(err)
	}
	path := filepath.Join("testdata", "freebsd.txt")
	if *update {
		if err := os.WriteFile(path, []byte(s.log.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.log.String(); got != string(want) {
		t.Errorf("differs from %s (-update writes it):\n%s", path, got)
	}
}

func TestFreeBSDRefusesWithoutPf(t *testing.T) {
	s := newSystem()
	s.main = "pass all\n"
	n := freebsdNetwork(t, s)
	if _, err := n.Add(t.Context(), Request{ID: "a"}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `anchor "cube/*"`) {
		t.Errorf("got %v, want what to put into pf.conf", err)
	}
	if len(s.ifaces) != 0 {
		t.Errorf("it made %v all the same", s.ifaces)
	}
}

// A tap of the same name that is somebody else's is left alone, also by Del, and
// what nobody has a record of goes.
func TestFreeBSDForeignAndForgotten(t *testing.T) {
	s := newSystem()
	n := freebsdNetwork(t, s)
	ctx := t.Context()
	for unit := range units {
		s.ifaces[fmt.Sprintf("tap%d", firstUnit+unit)] = "a virtual machine's"
	}
	if _, err := n.Add(ctx, Request{ID: "a"}); !errdefs.IsUnavailable(err) {
		t.Errorf("got %v, want unavailable", err)
	}
	if len(s.ifaces) != units+1 {
		t.Errorf("%d interfaces, want the foreign ones and the bridge", len(s.ifaces))
	}
	clear(s.ifaces)
	s.ifaces["tap105"], s.anchors["cube/cubenet0/sandbox-gone"] = "cubenet0 gone", "block drop all\n"
	removed, err := n.GC(ctx, nil)
	if err != nil || !slices.Equal(removed, []string{"tap tap105", "rules sandbox-gone"}) || s.anchors["cube/cubenet0/sandbox-gone"] != "" {
		t.Errorf("GC removed %q, %v", removed, err)
	}
}

// A tap whose maker did not come to saying whose it is belongs to the record: Add
// goes on with it, and Del removes it. What another one makes without a description
// does not.
func TestFreeBSDTapWithoutMark(t *testing.T) {
	s := newSystem()
	n := freebsdNetwork(t, s)
	ctx := t.Context()
	s.mute = true
	if _, err := n.Add(ctx, Request{ID: "a"}); err == nil {
		t.Fatal("a tap was described")
	}
	if len(s.ifaces) != 1 {
		t.Errorf("left: %q", s.ifaces)
	}
	s.mute = false
	a, err := n.Add(ctx, Request{ID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	// As after a kill between the two.
	cut := func() {
		t.Helper()
		r, err := n.store.load("a")
		if err != nil {
			t.Fatal(err)
		}
		s.ifaces[a.Tap], r.Making, r.Ready = "", true, false
		if err := n.store.save(r); err != nil {
			t.Fatal(err)
		}
	}
	cut()
	again, err := n.Add(ctx, Request{ID: "a"})
	if err != nil || again.Tap != a.Tap || s.ifaces[a.Tap] != "cubenet0 a" {
		t.Errorf("Add goes on with %+v, %v; there are %q", again, err, s.ifaces)
	}
	cut()
	if _, err := n.Del(ctx, "a"); err != nil || len(s.ifaces) != 1 {
		t.Errorf("left: %q, %v", s.ifaces, err)
	}
	s.ifaces[a.Tap] = ""
	other, err := n.Add(ctx, Request{ID: "a"})
	if err != nil || other.Tap == a.Tap || s.ifaces[a.Tap] != "" {
		t.Errorf("got %+v, %v; there are %q", other, err, s.ifaces)
	}
}

// A port of the host's is one sandbox's, until that is gone or wants it no more.
func TestFreeBSDPublishedPorts(t *testing.T) {
	n := freebsdNetwork(t, newSystem())
	ctx := t.Context()
	web := policy.Policy{Publish: []policy.Port{{Host: 8080, Guest: 80}}}
	dns := policy.Policy{Publish: []policy.Port{{Host: 8080, Guest: 53, Protocol: "udp"}}}
	if _, err := n.Add(ctx, Request{ID: "a", Policy: &web}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Add(ctx, Request{ID: "b", Policy: &web}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("the same port: %v, want it to exist already", err)
	}
	if _, err := n.Add(ctx, Request{ID: "b", Policy: &dns}); err != nil {
		t.Errorf("the same port of another protocol: %v", err)
	}
	if err := n.SetPolicy(ctx, "a", dns); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a policy with another's port: %v, want it to exist already", err)
	}
	if err := n.SetPolicy(ctx, "a", policy.Policy{}); err != nil {
		t.Fatal(err)
	}
	if err := n.SetPolicy(ctx, "b", web); err != nil {
		t.Errorf("a port that was given back: %v", err)
	}
	if _, err := n.Del(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	if err := n.SetPolicy(ctx, "a", policy.Policy{Publish: append(web.Publish, dns.Publish...)}); err != nil {
		t.Errorf("ports of one that has gone: %v", err)
	}
}

// Networks of one host share units of taps and the host's ports, and no anchor.
func TestFreeBSDTwoNetworks(t *testing.T) {
	s := newSystem()
	n := freebsdNetwork(t, s)
	cfg := n.cfg
	cfg.Bridge, cfg.Subnet = "cubenet1", netip.MustParsePrefix("10.78.0.0/24")
	cfg.Gateway, cfg.First, cfg.Last = netip.MustParseAddr("10.78.0.1"), netip.MustParseAddr("10.78.0.10"), netip.MustParseAddr("10.78.0.200")
	other := freebsdNetworkOf(cfg, s)
	ctx := t.Context()
	web := policy.Policy{Publish: []policy.Port{{Host: 8080, Guest: 80}}}
	a, err := n.Add(ctx, Request{ID: "a", Policy: &web})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Add(ctx, Request{ID: "a", Policy: &web}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a port of another network's: %v, want it to exist already", err)
	}
	b, err := other.Add(ctx, Request{ID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if a.Tap == b.Tap || s.anchors["cube/cubenet0/sandbox-a"] == "" || s.anchors["cube/cubenet1/sandbox-a"] == "" {
		t.Errorf("taps %s and %s, anchors %q", a.Tap, b.Tap, slices.Sorted(maps.Keys(s.anchors)))
	}
	if removed, err := other.GC(ctx, nil); err != nil || len(removed) > 0 {
		t.Errorf("GC removed %q, %v", removed, err)
	}
	if _, err := n.Del(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if err := n.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	if s.ifaces[b.Tap] != "cubenet1 a" || s.anchors["cube/cubenet1"] == "" || s.anchors["cube/cubenet1/sandbox-a"] == "" {
		t.Errorf("after the end of the first network: %q, anchors %q", s.ifaces, slices.Sorted(maps.Keys(s.anchors)))
	}
	if err := other.SetPolicy(ctx, "a", web); err != nil {
		t.Errorf("its port is free: %v", err)
	}
}

// What a name has opened is closed when its time is over, unless it is in use; a
// change of policy keeps what both allow.
func TestFreeBSDNames(t *testing.T) {
	s := newSystem()
	n := freebsdNetwork(t, s)
	ctx := t.Context()
	web := policy.Rule{Peers: []string{"web.example.org"}, Protocol: "tcp", Ports: []string{"80"}}
	other := policy.Rule{Peers: []string{"other.example.org"}}
	a, err := n.Add(ctx, Request{ID: "a", Policy: &policy.Policy{Allow: []policy.Rule{web, other}}})
	if err != nil {
		t.Fatal(err)
	}
	used, idle, gone := netip.MustParseAddr(friend), netip.MustParseAddr(foe), netip.MustParseAddr("203.0.113.99")
	over := -time.Second
	for _, name := range []struct {
		name string
		addr netip.Addr
		ttl  time.Duration
	}{
		{"web.example.org", used, over},
		{"web.example.org", idle, over},
		{"web.example.org", idle, over - 1}, // An answer that says less does not take away.
		{"other.example.org", gone, time.Hour},
		{"none.example.org", gone, time.Hour},
	} {
		if err := n.Resolved(ctx, a.Address, name.name, []netip.Addr{name.addr}, name.ttl); err != nil {
			t.Fatal(err)
		}
	}
	s.states = "cubenet0 tcp 203.0.113.10:80 <- " + a.Address.String() + ":4000       ESTABLISHED:ESTABLISHED\n   id: 01 creatorid: 02\n" +
		"cubenet0 tcp 203.0.113.66:80 <- " + a.Address.String() + ":4001       FIN_WAIT_2:FIN_WAIT_2\n   id: 03 creatorid: 02\n"
	s.log.Reset()
	next := n.expire(ctx, n.host.(expirer))
	if in := time.Until(next); in < openIdle-time.Minute || in > openIdle {
		t.Errorf("the next time is %v from now, want %v after the flow was seen", in, openIdle)
	}
	const anchor = "/sbin/pfctl -q -a cube/cubenet0/sandbox-a -t names-0 -T "
	if log := s.log.String(); !strings.Contains(log, anchor+"delete 203.0.113.66\n") || strings.Count(log, "-T") != 1 {
		t.Errorf("ran:\n%s", log)
	}
	// The other name has another number now, and web is gone.
	if err := n.SetPolicy(ctx, "a", policy.Policy{Allow: []policy.Rule{other}}); err != nil {
		t.Fatal(err)
	}
	if rules := s.anchors["cube/cubenet0/sandbox-a"]; !strings.Contains(rules, "table <names-0> persist { 203.0.113.99 }") || strings.Contains(rules, friend) {
		t.Errorf("rules:\n%s", rules)
	}
	if !strings.Contains(s.log.String(), "-k id -k 01/02") {
		t.Error("the flow to the name that has gone was not cut")
	}
	if in := time.Until(n.expire(ctx, n.host.(expirer))); in < 50*time.Minute {
		t.Errorf("the next time is %v from now, want that of the other name", in)
	}
}

// Who answers for a name does not fill the host.
func TestFreeBSDTooManyNames(t *testing.T) {
	n := freebsdNetwork(t, newSystem())
	ctx := t.Context()
	a, err := n.Add(ctx, Request{ID: "a", Policy: &policy.Policy{Allow: []policy.Rule{{Peers: []string{"*.example.org"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	addrs := []netip.Addr{netip.MustParseAddr("1.0.0.0")}
	for range maxOpened {
		addrs = append(addrs, addrs[len(addrs)-1].Next())
	}
	if err := n.Resolved(ctx, a.Address, "a.example.org", addrs[1:], time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := n.Resolved(ctx, a.Address, "b.example.org", addrs, time.Hour); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one more: %v", err)
	}
	if err := n.Resolved(ctx, a.Address, "b.example.org", addrs[1:2], time.Hour); err != nil {
		t.Errorf("one that is open: %v", err)
	}
}

// One sandbox more than pf has room for is refused, and nothing is left of it.
func TestFreeBSDNoRoom(t *testing.T) {
	s := newSystem()
	s.room = 3
	n := freebsdNetwork(t, s)
	ctx := t.Context()
	for _, id := range []string{"a", "b"} {
		if _, err := n.Add(ctx, Request{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	there := len(s.ifaces)
	if _, err := n.Add(ctx, Request{ID: "c"}); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "set limit") {
		t.Errorf("got %v, want what to do about it", err)
	}
	if _, err := n.Show(ctx, "c"); !errdefs.IsNotFound(err) || len(s.ifaces) != there || len(s.anchors) != s.room {
		t.Errorf("left: %v, %+v", err, s)
	}
	if _, err := n.Del(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Add(ctx, Request{ID: "c"}); err != nil {
		t.Errorf("there is room again: %v", err)
	}
}
