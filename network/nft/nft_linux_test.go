package nft

import (
	"bytes"
	"flag"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

var update = flag.Bool("update", false, "write golden files")

var table = Table{
	Bridge:  "cubenet0",
	Subnet:  netip.MustParsePrefix("10.77.0.0/24"),
	Gateway: netip.MustParseAddr("10.77.0.1"),
	MAC:     net.HardwareAddr{2, 0xcb, 10, 77, 0, 1},
}

func compile(t *testing.T, p policy.Policy) *policy.Compiled {
	t.Helper()
	c, err := p.Compile([]netip.Addr{netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("192.0.2.53")})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func sandbox(t *testing.T, name, tap, addr string, p policy.Policy) Sandbox {
	a := netip.MustParseAddr(addr)
	return Sandbox{Name: name, Tap: tap, Address: a, MAC: append(net.HardwareAddr{2, 0xcb}, a.AsSlice()...), Policy: compile(t, p)}
}

// inNamespace runs f in a new network namespace that has the devices t0 and t1.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	err = netns.Do(ns, func() error {
		for _, name := range []string{"t0", "t1"} {
			if err := netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP}); err != nil {
				return err
			}
		}
		f()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// ruleset is what nft(8) says of everything in the thread's namespace.
func ruleset(t *testing.T) []byte {
	t.Helper()
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("needs nft(8) to read rules back")
	}
	out, err := exec.Command(nft, "-n", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	return out
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
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
		{Peers: []string{"example.org"}, Protocol: "tcp", Ports: []string{"443"}},
	},
	Accept:    []policy.Rule{{Peers: []string{"10.77.0.11"}, Protocol: "udp", Ports: []string{"5353"}}},
	Publish:   []policy.Port{{Host: 8080, Guest: 80}, {HostIP: netip.MustParseAddr("127.0.0.1"), Host: 8053, Guest: 53, Protocol: "udp"}},
	Bandwidth: 1 << 20,
}

// The kernel takes the rules, and they say in nft's words what they should.
func TestGolden(t *testing.T) {
	inNamespace(t, func() {
		if err := table.Ensure(); err != nil {
			t.Fatal(err)
		}
		golden(t, "base.nft", ruleset(t))
		if err := table.Install(sandbox(t, "sandbox-a.1", "t0", "10.77.0.10", full)); err != nil {
			t.Fatal(err)
		}
		golden(t, "full.nft", ruleset(t))
		if err := table.Install(sandbox(t, "sandbox-a.1", "t0", "10.77.0.10", policy.Policy{})); err != nil {
			t.Fatal(err)
		}
		golden(t, "default.nft", ruleset(t))
	})
}

// What Install makes, Remove removes, once and twice, and with and without the
// device; what belongs to others stays as it is.
func TestRemoveLeavesNothing(t *testing.T) {
	inNamespace(t, func() {
		if err := table.Ensure(); err != nil {
			t.Fatal(err)
		}
		a, b := sandbox(t, "a", "t0", "10.77.0.10", full), sandbox(t, "ab", "t1", "10.77.0.11", policy.Policy{Deny: full.Deny})
		if err := table.Install(b); err != nil {
			t.Fatal(err)
		}
		before := ruleset(t)
		for range 2 {
			if err := table.Install(a); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := table.Remove(a); err != nil {
				t.Fatal(err)
			}
			if got := ruleset(t); !bytes.Equal(got, before) {
				t.Errorf("left behind:\n%s\nwant:\n%s", got, before)
			}
		}
		link, err := netlink.LinkByName("t1")
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := table.Remove(b); err != nil {
			t.Fatal(err)
		}
		names, err := table.Sandboxes()
		if err != nil || len(names) != 0 {
			t.Errorf("sandboxes: %q, %v", names, err)
		}
		if err := table.Destroy(); err != nil {
			t.Fatal(err)
		}
		if got := ruleset(t); len(got) != 0 {
			t.Errorf("left behind:\n%s", got)
		}
	})
}

func TestPublishedPortBelongsToOne(t *testing.T) {
	inNamespace(t, func() {
		if err := table.Ensure(); err != nil {
			t.Fatal(err)
		}
		publish := policy.Policy{Publish: []policy.Port{{Host: 8080, Guest: 80}}}
		a, b := sandbox(t, "a", "t0", "10.77.0.10", publish), sandbox(t, "b", "t1", "10.77.0.11", publish)
		if err := table.Install(a); err != nil {
			t.Fatal(err)
		}
		before := ruleset(t)
		if err := table.Install(b); !errdefs.IsAlreadyExists(err) {
			t.Errorf("got %v, want already exists", err)
		}
		if got := ruleset(t); !bytes.Equal(got, before) {
			t.Errorf("a refused policy changed the rules:\n%s", got)
		}
		if err := table.Remove(a); err != nil {
			t.Fatal(err)
		}
		if err := table.Install(b); err != nil {
			t.Error(err)
		}
	})
}

// A policy of many thousand ranges is one transaction all the same.
func TestLargePolicy(t *testing.T) {
	var many policy.Rule
	for i := range 5000 {
		many.Peers = append(many.Peers, netip.AddrFrom4([4]byte{203, byte(i >> 8), byte(i), 1}).String())
	}
	inNamespace(t, func() {
		if err := table.Ensure(); err != nil {
			t.Fatal(err)
		}
		s := sandbox(t, "a", "t0", "10.77.0.10", policy.Policy{Deny: []policy.Rule{many}})
		for range 2 {
			if err := table.Install(s); err != nil {
				t.Fatal(err)
			}
		}
		// Every other range, so that none is next to another.
		if n := bytes.Count(ruleset(t), []byte(".1,")) + bytes.Count(ruleset(t), []byte(".1 }")); n < 5000 {
			t.Errorf("%d ranges in the kernel, want 5000", n)
		}
	})
}
