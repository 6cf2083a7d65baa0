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

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// Run runs a program of the base system with a standard input, and returns its
// standard output. An error has what the program said.
type Run func(ctx context.Context, stdin string, argv ...string) ([]byte, error)

const pfctl = "/sbin/pfctl"

// Control is pf by way of pfctl(8).
type Control struct{ Run Run }

// Check returns nil if pf runs and its ruleset has MainRules, and else
// errdefs.ErrFailedPrecondition with what to do.
func (c Control) Check(ctx context.Context) error {
	info, err := c.Run(ctx, "", pfctl, "-s", "info")
	if err != nil {
		return fmt.Errorf("is pf loaded (kldload pf)? %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if !bytes.HasPrefix(info, []byte("Status: Enabled")) {
		return fmt.Errorf("pf is not enabled (pf_enable in rc.conf, or pfctl -e): %w", errdefs.ErrFailedPrecondition)
	}
	var all []byte
	for _, what := range []string{"nat", "rules"} {
		rules, err := c.Run(ctx, "", pfctl, "-s", what)
		if err != nil {
			return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
		}
		all = append(all, rules...)
	}
	return checkMain(all)
}

// checkMain looks for MainRules in what pfctl prints, in their order and with
// nothing before the last that lets packets of just any interface in.
func checkMain(rules []byte) error {
	missing := func(why string) error {
		return fmt.Errorf("pf does not keep guests from the host (%s): put these lines into pf.conf and load it (docs/freebsd.md):\n%s%w",
			why, MainRules, errdefs.ErrFailedPrecondition)
	}
	want := []func(words []string) bool{
		isAnchor("nat-anchor", Root), isAnchor("rdr-anchor", Root+"/*"), isAnchor("anchor", Root),
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

// isAnchor matches a line as pfctl prints it: `anchor "cube" all`.
func isAnchor(kind, name string) func([]string) bool {
	return func(words []string) bool {
		return len(words) >= 2 && words[0] == kind && strings.Trim(words[1], `"`) == name && !slices.Contains(words, "on")
	}
}

// Load replaces the ruleset of an anchor, tables included, in one transaction.
func (c Control) Load(ctx context.Context, anchor, rules string) error {
	if _, err := c.Run(ctx, rules, pfctl, "-a", anchor, "-f", "-"); err != nil {
		return fmt.Errorf("load anchor %s: %w", anchor, err)
	}
	return nil
}

// Flush empties an anchor, which makes it go. One that is not there is no error.
func (c Control) Flush(ctx context.Context, anchor string) error {
	anchors, err := c.Anchors(ctx)
	if err != nil {
		return err
	}
	if !slices.Contains(anchors, strings.TrimPrefix(anchor, Root+"/")) {
		return nil
	}
	// "all" would be the states and sources of everybody as well.
	for _, what := range []string{"nat", "rules", "Tables"} {
		if _, err := c.Run(ctx, "", pfctl, "-a", anchor, "-F", what); err != nil {
			return fmt.Errorf("flush anchor %s: %w", anchor, err)
		}
	}
	return nil
}

// Anchors are the names of the anchors below Root.
func (c Control) Anchors(ctx context.Context) ([]string, error) {
	out, err := c.Run(ctx, "", pfctl, "-a", Root, "-s", "Anchors")
	if err != nil {
		return nil, fmt.Errorf("list anchors: %w", err)
	}
	var names []string
	for word := range strings.FieldsSeq(string(out)) {
		names = append(names, strings.TrimPrefix(word, Root+"/"))
	}
	return names, nil
}

// Denied is what has been stopped of a sandbox's packets.
type Denied struct{ Denied, Spoofed uint64 }

// Denied reads the counters of a sandbox's rules. A line of `pfctl -s labels` is
// a label and then evaluations, packets, bytes and more (pfctl(8)).
func (c Control) Denied(ctx context.Context, s Sandbox) (Denied, error) {
	out, err := c.Run(ctx, "", pfctl, "-a", s.Anchor(), "-s", "labels")
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

// State is a flow that pf keeps track of, as seen on the tap.
type State struct {
	// From opened it.
	From, To netip.AddrPort
	Protocol uint8
}

// States are those that an address has a part in.
func (c Control) States(ctx context.Context, addr netip.Addr) ([]State, error) {
	out, err := c.Run(ctx, "", pfctl, "-s", "states")
	if err != nil {
		return nil, fmt.Errorf("states of %s: %w", addr, err)
	}
	var states []State
	for line := range strings.Lines(string(out)) {
		if s, ok := parseState(line); ok && (s.From.Addr() == addr || s.To.Addr() == addr) {
			states = append(states, s)
		}
	}
	return states, nil
}

var protocolNumbers = map[string]uint8{"icmp": 1, "tcp": 6, "udp": 17}

// parseState reads a line of pfctl's (print_state):
//
//	all tcp 10.77.0.10:4000 -> 203.0.113.10:80       ESTABLISHED:ESTABLISHED
//	em0 tcp 192.0.2.1:61000 (10.77.0.10:4000) -> 203.0.113.10:80       …
//	all tcp 10.77.0.10:80 (192.0.2.1:8080) <- 198.51.100.9:5000       …
//
// The address in parentheses is the one before translation.
func parseState(line string) (State, bool) {
	words := strings.Fields(line)
	if len(words) < 5 {
		return State{}, false
	}
	proto := protocolNumbers[words[1]]
	left, rest := words[2], words[3:]
	if strings.HasPrefix(rest[0], "(") {
		if rest[0] = strings.Trim(rest[0], "()"); rest[1] == "->" {
			left = rest[0]
		}
		rest = rest[1:]
	}
	if len(rest) < 2 {
		return State{}, false
	}
	a, aerr := netip.ParseAddrPort(left)
	b, berr := netip.ParseAddrPort(rest[1])
	if aerr != nil || berr != nil {
		return State{}, false
	}
	if rest[0] == "<-" {
		a, b = b, a
	}
	return State{From: a, To: b, Protocol: proto}, true
}

// Kill forgets the flows between two addresses, in both directions; an invalid
// peer is everybody.
func (c Control) Kill(ctx context.Context, addr, peer netip.Addr) error {
	others := "0.0.0.0/0"
	if peer.IsValid() {
		others = peer.String()
	}
	for _, ends := range [][2]string{{addr.String(), others}, {others, addr.String()}} {
		if _, err := c.Run(ctx, "", pfctl, "-k", ends[0], "-k", ends[1]); err != nil {
			return fmt.Errorf("kill states of %s: %w", addr, err)
		}
	}
	return nil
}

// Outlawed are the peers of a guest's flows that its policy does not allow (any
// more). host says which addresses are the host's.
func Outlawed(s Sandbox, states []State, host func(netip.Addr) bool) []netip.Addr {
	var peers []netip.Addr
	for _, st := range states {
		f := policy.Flow{Protocol: st.Protocol}
		var ok bool
		if st.From.Addr() == s.Address {
			f.Peer, f.Port = st.To.Addr(), st.To.Port()
			f.Host = host(f.Peer)
			ok = s.Policy.Opens(f)
		} else {
			f.Peer, f.Port = st.From.Addr(), st.To.Port()
			f.Host = host(f.Peer)
			ok = s.Policy.Takes(f, true)
		}
		if !ok {
			peers = append(peers, f.Peer)
		}
	}
	slices.SortFunc(peers, netip.Addr.Compare)
	return slices.Compact(peers)
}
