package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/jail"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/pf"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// A tap's frames begin with their addresses here.
var frameHeader []byte

// limitedTo is a bandwidth, in bytes a second, far below what guests have without one:
// half a MiB on an emulated host.
const limitedTo = 1 << 16

// whyNoBandwidth says why there can be no bandwidth.
func whyNoBandwidth() string {
	if exec.Command("/sbin/kldstat", "-q", "-m", "dummynet").Run() != nil {
		return "needs dummynet: kldload dummynet"
	}
	return ""
}

// pf sees packets, and not what carries them; the bridge drops the others.
var counterOf = map[crime]func(Counters) uint64{forged: spoofed, disguised: denied, forbidden: denied}

// inJailEnv is set in the jail that is the host of all tests.
const inJailEnv = "NETWORK_TEST_JAIL"

// runIn runs the tests in a jail, which is the host that they change: pf, bridges
// and forwarding are a VNET's own.
func runIn(m *testing.M) int {
	switch {
	case os.Getenv(placeEnv) != "":
		serveSockets()
		return 0
	case os.Getenv(inJailEnv) != "" || whyNot() != "":
		return m.Run()
	}
	if err := jail.Self(100, os.Stdout, os.Stderr, inJailEnv+"=1"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// whyNot says why there can be no host for tests here.
func whyNot() string {
	if os.Getuid() != 0 {
		return "needs root: makes jails with networks"
	}
	if _, err := os.Stat("/dev/pf"); err != nil {
		return "needs pf: kldload pf"
	}
	if out, err := exec.Command(sysctl, "-n", "kern.features.vimage").Output(); err != nil || strings.TrimSpace(string(out)) != "1" {
		return "needs a kernel with VIMAGE"
	}
	return ""
}

const route = "/sbin/route"

// ruleset is an administrator's pf.conf with what docs/network.md asks for, and
// with a fence as links have it (docs/freebsd.md).
var ruleset = "set state-policy if-bound\n" +
	strings.Replace(pf.MainRules, "\nanchor", "\nblock drop quick on fenced all\nanchor", 1) + "pass all\n"

// try runs f on the host, which is where the tests are.
func (r *rig) try(f func() error) error { return f() }

func (r *rig) build() {
	r.t.Helper()
	if why := whyNot(); why != "" {
		r.t.Skip(why)
	}
	r.host, r.world = &place{}, newPlace(r.t)
	r.t.Cleanup(r.clear)
	r.load(ruleset)
	// It is enabled already from the second test on.
	_, _ = run(r.t.Context(), "", "/sbin/pfctl", "-q", "-e")
	world := strconv.Itoa(r.world.jail)
	pair := strings.TrimSpace(r.run(ifconfig, "epair", "create"))
	far := strings.TrimSuffix(pair, "a") + "b"
	r.run(ifconfig, "lo0", "inet", "127.0.0.1/8", "up")
	r.run(ifconfig, pair, "name", "uplink")
	r.run(ifconfig, "uplink", "inet", uplink+"/24", "up")
	r.run(ifconfig, "uplink", "inet", "192.168.50.1/24", "alias")
	r.run(ifconfig, far, "vnet", world)
	r.run(ifconfig, "-j", world, far, "inet", friend+"/24", "up")
	r.run(ifconfig, "-j", world, far, "inet", foe+"/32", "alias")
	r.run(ifconfig, "-j", world, far, "inet", private+"/24", "alias")
	// Everything else is out there, too: what is denied is not stopped for want of
	// a route. And a world that would answer a guest whose address is not
	// translated.
	r.run(route, "add", "default", friend)
	r.run(route, "-j", world, "add", "default", uplink)
}

// run runs a tool of the system's, which must succeed.
func (r *rig) run(argv ...string) string {
	r.t.Helper()
	out, err := run(context.WithoutCancel(r.t.Context()), "", argv...)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(out)
}

// load loads the host's ruleset.
func (r *rig) load(rules string) {
	r.t.Helper()
	if _, err := run(r.t.Context(), rules, "/sbin/pfctl", "-q", "-f", "-"); err != nil && !strings.Contains(err.Error(), "pf.os") {
		r.t.Fatal(err)
	}
}

// clear takes from the host what a test has made of it, whatever became of the
// test.
func (r *rig) clear() {
	ctx := context.Background()
	_, err := r.net.GC(ctx, func(string) bool { return false })
	if err = errors.Join(err, r.net.Destroy(ctx)); err != nil {
		r.t.Errorf("the network does not go: %v", err)
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		r.t.Error(err)
	}
	for _, i := range interfaces {
		if i.Name != "lo0" && !strings.HasPrefix(i.Name, "pflog") {
			_, _ = run(ctx, "", ifconfig, i.Name, "destroy")
		}
	}
	for _, what := range []string{"nat", "rules", "states", "Tables"} {
		_, _ = run(ctx, "", "/sbin/pfctl", "-q", "-F", what)
	}
}

// inner numbers the guests' own taps, whose names are one for all jails.
var inner = 5000

// plug gives a guest its place and its end of the tap, and returns that of its
// interface.
func (r *rig) plug(g *guest) (inside *os.File) {
	r.t.Helper()
	g.place = newPlace(r.t)
	inner++
	name, id := fmt.Sprintf("tap%d", inner), strconv.Itoa(g.jail)
	r.run(ifconfig, name, "create")
	inside = r.openTap(name)
	if g.wire == nil {
		g.wire = r.openTap(g.Tap)
	}
	r.run(ifconfig, name, "vnet", id)
	r.run(ifconfig, "-j", id, name, "ether", g.MAC.String())
	r.run(ifconfig, "-j", id, name, "inet", g.Address.String()+"/32", "up")
	r.run(route, "-j", id, "add", "-host", g.Gateway.String(), "-iface", name)
	r.run(route, "-j", id, "add", "default", g.Gateway.String())
	return inside
}

// port is a machine's own tap, open, and of a group that pf keeps from everything.
func (r *rig) port(g *guest) *Port {
	r.t.Helper()
	const name = "tap4999"
	r.run(ifconfig, name, "create", "description", "a machine's", "group", "fenced")
	g.wire = r.openTap(name)
	return &Port{Tap: name}
}

func (r *rig) openTap(name string) *os.File {
	r.t.Helper()
	f, err := os.OpenFile(filepath.Join("/dev", name), os.O_RDWR, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	return f
}

// leftOnHost is taps, entries of the table of neighbours, anchors, their lines,
// and states.
func (r *rig) leftOnHost() (all []string, err error) {
	h := r.net.host.(*freebsd)
	out, err := run(r.t.Context(), "", ifconfig, "-g", pf.Group)
	if err != nil {
		return nil, err
	}
	for name := range strings.FieldsSeq(string(out)) {
		if name != r.net.cfg.Bridge {
			all = append(all, "link "+name)
		}
	}
	anchors, err := h.pf.Sandboxes(r.t.Context(), r.net.cfg.Bridge)
	if err != nil {
		return nil, err
	}
	for _, name := range anchors {
		// Empty ones pf removes in its own time.
		loaded, err := h.pf.Loaded(r.t.Context(), pf.Sandbox{Name: name, Bridge: r.net.cfg.Bridge})
		if err != nil {
			return nil, err
		}
		if loaded {
			all = append(all, "rules "+name)
		}
	}
	ports, err := os.ReadDir(r.net.store.ports())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	pipes, err := os.ReadDir(r.net.store.pipes())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, p := range append(ports, pipes...) {
		all = append(all, p.Name())
	}
	for _, argv := range [][]string{
		{"/sbin/pfctl", "-a", pf.NetworkAnchor(r.net.cfg.Bridge), "-s", "rules"},
		{"/sbin/pfctl", "-s", "states"},
		{arp, "-an"},
	} {
		out, err := run(r.t.Context(), "", argv...)
		if err != nil {
			return nil, err
		}
		for line := range bytes.Lines(out) {
			if strings.Contains(string(line), "sandbox-") || strings.Contains(string(line), "10.77.0.") && !strings.Contains(string(line), r.net.cfg.Gateway.String()+")") {
				all = append(all, strings.TrimSpace(string(line)))
			}
		}
	}
	if whyNoBandwidth() == "" {
		out, err := run(r.t.Context(), "", "/sbin/dnctl", "pipe", "list")
		if err != nil {
			return nil, err
		}
		for line := range bytes.Lines(out) {
			all = append(all, "pipe "+string(line))
		}
	}
	return all, nil
}

// noNeighbour is an error if the host has learned an address.
func (r *rig) noNeighbour(mac net.HardwareAddr) error {
	for _, argv := range [][]string{{arp, "-an"}, {ifconfig, r.net.cfg.Bridge, "addr"}} {
		out, err := run(r.t.Context(), "", argv...)
		if err != nil {
			return err
		}
		if strings.Contains(string(out), mac.String()) {
			return fmt.Errorf("the host has learned %s: %s", mac, out)
		}
	}
	return nil
}

// damages are what an administrator may do to a sandbox's tap and rules.
func damages(tap string) map[string]func() error {
	by := func(argv ...string) func() error {
		return func() error { _, err := run(context.Background(), "", argv...); return err }
	}
	return map[string]func() error{
		"the tap is gone":              by(ifconfig, tap, "destroy"),
		"the tap is down":              by(ifconfig, tap, "down"),
		"the tap is no private member": by(ifconfig, "cubenet0", "-private", tap),
		"the sandbox's rules are gone": by("/sbin/pfctl", "-a", pf.NetworkAnchor("cubenet0")+"/sandbox-a", "-F", "rules"),
		"the lines to them are gone":   by("/sbin/pfctl", "-a", pf.NetworkAnchor("cubenet0"), "-F", "rules"),
		"the bridge is open":           by(sysctl, "net.link.bridge.pfil_local_phys=0"),
	}
}

// strayTap makes a tap of the network's that has no record.
func (r *rig) strayTap(name string) error {
	_, err := run(r.t.Context(), "", ifconfig, name, "create", "description", r.net.cfg.Bridge+" stray", "group", pf.Group)
	return err
}

// A pf that does not keep guests from the host is refused, and nothing is made.
func TestUnsafePfIsRefused(t *testing.T) {
	r := newRig(t, policy.Policy{})
	for name, rules := range map[string]string{
		"no line of ours":       "pass all\n",
		"no rule at all":        "",
		"all passes before":     strings.Replace(ruleset, "\nanchor", "\npass quick all\nanchor", 1),
		"guests are skipped":    "set skip on " + pf.Group + "\n" + ruleset,
		"the bridge is skipped": "set skip on " + r.net.cfg.Bridge + "\n" + ruleset,
	} {
		r.load(rules)
		if _, err := r.net.Add(t.Context(), Request{ID: "a"}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
	}
	r.load(ruleset)
	r.run("/sbin/pfctl", "-q", "-d")
	if _, err := r.net.Add(t.Context(), Request{ID: "a"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("it is disabled: %v, want a refusal", err)
	}
	if left := r.left(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	r.run("/sbin/pfctl", "-q", "-e")
	r.add("a", nil)
}
