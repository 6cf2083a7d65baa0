package pf

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
)

// Run runs a program of the base system with a standard input, and returns its
// standard output. An error has what the program said.
type Run func(ctx context.Context, stdin string, argv ...string) ([]byte, error)

const pfctl = "/sbin/pfctl"

// Control is pf by way of pfctl(8).
type Control struct {
	Run Run
	// AtOnce is how many programs that do not depend on each other are run at a time;
	// 0 is one.
	AtOnce int
}

// Together calls functions that run programs which do not depend on each other. After
// a first error, which it returns, the others' context is done.
func (c Control) Together(ctx context.Context, all ...func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(c.AtOnce, 1))
	for _, f := range all {
		g.Go(func() error { return f(ctx) })
	}
	return g.Wait()
}

// show is what pfctl shows, by the words of its argument -s, all of it or an error.
func (c Control) show(ctx context.Context, args ...[]string) ([][]byte, error) {
	out := make([][]byte, len(args))
	var all []func(context.Context) error
	for i, a := range args {
		all = append(all, func(ctx context.Context) (err error) {
			out[i], err = c.pfctl(ctx, "", a...)
			return err
		})
	}
	return out, c.Together(ctx, all...)
}

// busyPause is how long pf is left alone when it was busy, at first; patience how
// long it may be so.
const busyPause, patience = 5 * time.Millisecond, 30 * time.Second

// passing are failures that are over in a moment. pf is busy with somebody else's
// transaction: it has one buffer for addresses of rules, and whoever begins last has
// it (DIOCBEGINADDRS in sys/netpfil/pf/pf_ioctl.c). And before it loads anything,
// pfctl asks for the groups of all interfaces that it has listed, and gives up where
// one has gone meanwhile (ifa_add_groups_to_map in sbin/pfctl/pfctl_parser.c).
var passing = []string{"Device busy", "SIOCGIFGROUP: Device not configured"}

// pfctl runs pfctl(8) until nothing that passes is in its way.
func (c Control) pfctl(ctx context.Context, stdin string, args ...string) ([]byte, error) {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for pause := busyPause; ; pause = min(2*pause, 100*busyPause) {
		out, err := c.Run(ctx, stdin, append([]string{pfctl}, args...)...)
		if err == nil || !slices.ContainsFunc(passing, func(why string) bool { return strings.Contains(err.Error(), why) }) {
			return out, err
		}
		select {
		case <-waiting.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// Check returns nil if pf runs, its ruleset has MainRules, and it skips neither
// bridge nor a group of ours; and else errdefs.ErrFailedPrecondition with what to
// do.
func (c Control) Check(ctx context.Context, bridge string) error {
	out, err := c.show(ctx, []string{"-s", "info"}, []string{"-v", "-s", "Interfaces"},
		[]string{"-s", "ether"}, []string{"-s", "nat"}, []string{"-s", "rules"})
	if err != nil && strings.Contains(err.Error(), "/dev/pf") {
		return fmt.Errorf("is pf loaded (kldload pf)? %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return err
	}
	info, interfaces, rules := out[0], out[1], bytes.Join(out[2:], nil)
	if !bytes.HasPrefix(info, []byte("Status: Enabled")) {
		return fmt.Errorf("pf is not enabled (pf_enable in rc.conf, or pfctl -e): %w", errdefs.ErrFailedPrecondition)
	}
	for line := range strings.Lines(string(interfaces)) {
		name, skipped := strings.CutSuffix(strings.TrimSpace(line), " (skip)")
		if skipped && slices.Contains([]string{bridge, Group, TapGroup}, name) {
			return fmt.Errorf("pf does not look at guests' packets: set skip on %s: %w", name, errdefs.ErrFailedPrecondition)
		}
	}
	return checkMain(rules)
}

// checkMain looks for MainRules in what pfctl prints, in their order and with
// nothing before the last that lets packets of just any interface in.
func checkMain(rules []byte) error {
	missing := func(why string) error {
		return fmt.Errorf("pf does not keep guests from the host (%s): put these lines into pf.conf and load it (docs/network.md):\n%s%w",
			why, MainRules, errdefs.ErrFailedPrecondition)
	}
	begins := func(line string) func([]string) bool {
		words := strings.Fields(line)
		return func(w []string) bool {
			return slices.Equal(w[:min(len(words), len(w))], words) && !slices.Contains(w, "from")
		}
	}
	want := []func(words []string) bool{
		begins("ether block in quick on " + TapGroup),
		begins(`ether anchor "` + Root + `/*" on ` + Group),
		isAnchor("nat-anchor"), isAnchor("rdr-anchor"), isAnchor("anchor"),
		func(w []string) bool { return slices.Equal(w, []string{"block", "drop", "quick", "on", Group, "all"}) },
	}
	seen := make([]bool, len(want))
	for lines := bufio.NewScanner(bytes.NewReader(rules)); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) == 0 {
			continue
		}
		for i, is := range want {
			if is(words) {
				seen[i] = true
			}
		}
		if seen[len(want)-1] {
			break
		}
		if words[0] == "pass" && slices.Contains(words, "quick") && !slices.Contains(words, "on") {
			return missing("an earlier rule lets everything pass: " + lines.Text())
		}
	}
	for i, line := range strings.Split(strings.TrimSpace(MainRules), "\n") {
		if !seen[i] {
			return missing("there is no " + line)
		}
	}
	return nil
}

// isAnchor matches a line as pfctl prints it: `anchor "cube/*" all`.
func isAnchor(kind string) func([]string) bool {
	return func(words []string) bool {
		return len(words) >= 2 && words[0] == kind && strings.Trim(words[1], `"`) == Root+"/*" && !slices.Contains(words, "on")
	}
}

// CheckSandbox is an error unless the rules of a sandbox are loaded, and found by
// its packets.
func (c Control) CheckSandbox(ctx context.Context, s Sandbox) error {
	network := NetworkAnchor(s.Bridge)
	ask := [][]string{{"-a", s.Anchor(), "-s", "rules"}, {"-a", network, "-s", "rules"}}
	if s.Pipe != 0 {
		ask = append(ask, []string{"-a", network, "-s", "ether"})
	}
	out, err := c.show(ctx, ask...)
	if err != nil {
		return fmt.Errorf("rules of %s: %w", s.Name, err)
	}
	if !bytes.Contains(out[0], []byte(s.denied())) {
		return fmt.Errorf("pf has no rules in anchor %s", s.Anchor())
	}
	for _, line := range s.lines() {
		// pfctl prints more of a rule than was written.
		if want := strings.Fields(line)[:3]; !slices.ContainsFunc(strings.Split(string(out[1]), "\n"), func(have string) bool {
			words := strings.Fields(have)
			return len(words) >= 3 && slices.Equal(words[:3], want)
		}) {
			return fmt.Errorf("anchor %s has no line %q", network, line)
		}
	}
	for _, frames := range out[2:] {
		if err := s.checkShapes(frames); err != nil {
			return err
		}
	}
	return nil
}

// noRoom is all that pfctl says where pf cannot begin a transaction (pfctl_rules in
// sbin/pfctl/pfctl.c), which is for want of memory or of room for another anchor.
const noRoom = "pfctl: pfctl_rules"

// Load replaces the ruleset of an anchor, tables included, in one transaction.
// errdefs.ErrResourceExhausted if pf has no room for the anchor.
func (c Control) Load(ctx context.Context, anchor, rules string) error {
	_, err := c.pfctl(ctx, rules, "-a", anchor, "-f", "-")
	switch {
	case err == nil:
		return nil
	case strings.HasSuffix(err.Error(), noRoom):
		// What was begun has made an anchor for Ethernet rules, which pf keeps. One
		// that is not there is no matter.
		_, _ = c.pfctl(ctx, "", "-a", anchor, "-F", "ethernet")
		return fmt.Errorf("load anchor %s: pf has no room for it (set limit { anchors N, eth-anchors N } in pf.conf): %w: %w",
			anchor, err, errdefs.ErrResourceExhausted)
	}
	return fmt.Errorf("load anchor %s: %w", anchor, err)
}

// Open lets a guest reach addresses of the i-th of its policy's names, and Close ends
// that for flows to come. What is so already is no error.
func (c Control) Open(ctx context.Context, s Sandbox, i int, addrs []netip.Addr) error {
	return c.table(ctx, s, i, "add", addrs)
}

// Close is the opposite of Open.
func (c Control) Close(ctx context.Context, s Sandbox, i int, addrs []netip.Addr) error {
	return c.table(ctx, s, i, "delete", addrs)
}

func (c Control) table(ctx context.Context, s Sandbox, i int, verb string, addrs []netip.Addr) error {
	args := []string{"-q", "-a", s.Anchor(), "-t", namesTable(i), "-T", verb}
	for _, a := range addrs {
		args = append(args, a.String())
	}
	if _, err := c.pfctl(ctx, "", args...); err != nil {
		return fmt.Errorf("%s addresses of names of %s: %w", verb, s.Name, err)
	}
	return nil
}

// Flush empties a sandbox's anchor, which makes it go: pf does that within seconds,
// when it purges what has been taken out. One that is not there is no error.
func (c Control) Flush(ctx context.Context, s Sandbox) error {
	anchors, err := c.Sandboxes(ctx, s.Bridge)
	if err != nil || !slices.Contains(anchors, s.Name) {
		return err
	}
	anchor := s.Anchor()
	// "all" would be the states and sources of everybody as well.
	for _, what := range []string{"nat", "rules", "Tables"} {
		_, err := c.pfctl(ctx, "", "-a", anchor, "-F", what)
		if err != nil && what == "Tables" && strings.Contains(err.Error(), "Operation not supported by device") {
			// There are none: it is about to go.
			return nil
		}
		if err != nil {
			return fmt.Errorf("flush anchor %s: %w", anchor, err)
		}
	}
	return nil
}

// Loaded says whether a sandbox's anchor has rules.
func (c Control) Loaded(ctx context.Context, s Sandbox) (bool, error) {
	rules, err := c.pfctl(ctx, "", "-a", s.Anchor(), "-s", "rules")
	if err != nil {
		return false, fmt.Errorf("rules of %s: %w", s.Name, err)
	}
	return len(bytes.TrimSpace(rules)) > 0, nil
}

// Sandboxes are the names of the anchors of a bridge's network.
func (c Control) Sandboxes(ctx context.Context, bridge string) ([]string, error) {
	network := NetworkAnchor(bridge)
	out, err := c.pfctl(ctx, "", "-a", network, "-s", "Anchors")
	if err != nil && strings.Contains(err.Error(), "does not exist") {
		// pf has forgotten it, as it was empty.
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list anchors: %w", err)
	}
	var names []string
	for word := range strings.FieldsSeq(string(out)) {
		names = append(names, strings.TrimPrefix(word, network+"/"))
	}
	return names, nil
}

// Denied is what has been stopped of a sandbox's packets.
type Denied struct{ Denied, Spoofed uint64 }

// Denied reads the counters of a sandbox's rules. A line of `pfctl -s labels` is
// a label and then evaluations, packets, bytes and more (pfctl(8)).
func (c Control) Denied(ctx context.Context, s Sandbox) (Denied, error) {
	out, err := c.pfctl(ctx, "", "-a", s.Anchor(), "-s", "labels")
	if err != nil {
		return Denied{}, fmt.Errorf("counters of %s: %w", s.Name, err)
	}
	var d Denied
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		if len(words) < 3 {
			continue
		}
		n, err := strconv.ParseUint(words[2], 10, 64)
		switch {
		case err != nil:
		case words[0] == s.denied():
			d.Denied += n
		case words[0] == s.spoofed():
			d.Spoofed += n
		}
	}
	return d, nil
}
