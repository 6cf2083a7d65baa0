package pf

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// State is a flow that pf keeps track of, as the guest sees it: a flow that
// passes the bridge and is translated elsewhere has two.
type State struct {
	// ID names it to pfctl: a number and that of the host that has made it.
	ID string
	// From opened it.
	From, To netip.AddrPort
	Protocol uint8
	// Open is true once both ends have spoken, until one of them has closed it.
	Open bool
}

// States are those that an address has a part in.
func (c Control) States(ctx context.Context, addr netip.Addr) ([]State, error) {
	out, err := c.pfctl(ctx, "", "-vv", "-s", "states")
	if err != nil {
		return nil, fmt.Errorf("states of %s: %w", addr, err)
	}
	var states []State
	var last *State
	for line := range strings.Lines(string(out)) {
		if words := strings.Fields(line); len(words) >= 4 && words[0] == "id:" && words[2] == "creatorid:" {
			if last != nil {
				last.ID = words[1] + "/" + words[3]
			}
			continue
		}
		if strings.HasPrefix(line, " ") {
			continue
		}
		last = nil
		if s, ok := parseState(line); ok && (s.From.Addr() == addr || s.To.Addr() == addr) {
			states = append(states, s)
			last = &states[len(states)-1]
		}
	}
	return states, nil
}

var protocolNumbers = map[string]uint8{"icmp": 1, "tcp": 6, "udp": 17}

// parseState reads a line of pfctl's (print_state):
//
//	cubenet0 tcp 203.0.113.10:80 <- 10.77.0.10:4000       ESTABLISHED:ESTABLISHED
//	em0 tcp 192.0.2.1:61000 (10.77.0.10:4000) -> 203.0.113.10:80       …
//	em0 tcp 10.77.0.10:80 (192.0.2.1:8080) <- 198.51.100.9:5000       …
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
	return State{From: a, To: b, Protocol: proto, Open: isOpen(words[1], words[len(words)-1])}, true
}

// isOpen reads what pfctl says of the two ends of a flow, such as
// "ESTABLISHED:FIN_WAIT_2", "SINGLE:NO_TRAFFIC", "0:0".
func isOpen(proto, ends string) bool {
	if proto == "tcp" {
		return ends == "ESTABLISHED:ESTABLISHED"
	}
	return !strings.Contains(ends, "NO_TRAFFIC")
}

// Kill forgets states. One that has gone meanwhile is no error.
func (c Control) Kill(ctx context.Context, states []State) error {
	for _, s := range states {
		if _, err := c.pfctl(ctx, "", "-k", "id", "-k", s.ID); err != nil {
			return fmt.Errorf("kill state %s: %w", s.ID, err)
		}
	}
	return nil
}

// KillAll forgets every flow of an address, in both directions, translated or
// not, and returns those that are left.
func (c Control) KillAll(ctx context.Context, addr netip.Addr) ([]State, error) {
	var kill []func(context.Context) error
	for _, which := range [][]string{
		{"-k", addr.String()}, {"-k", "0.0.0.0/0", "-k", addr.String()}, {"-k", "nat", "-k", addr.String()},
	} {
		kill = append(kill, func(ctx context.Context) error { _, err := c.pfctl(ctx, "", which...); return err })
	}
	if err := c.Together(ctx, kill...); err != nil {
		return nil, fmt.Errorf("kill states of %s: %w", addr, err)
	}
	states, err := c.States(ctx, addr)
	if err != nil || len(states) == 0 {
		return nil, err
	}
	// pfctl has no words for all of those that were redirected to the address.
	if err := c.Kill(ctx, states); err != nil {
		return nil, err
	}
	return c.States(ctx, addr)
}

// Outlawed are those of a guest's flows that its policy does not allow (any
// more). host says which addresses are the host's.
func Outlawed(s Sandbox, states []State, host func(netip.Addr) bool) []State {
	var outlawed []State
	for _, st := range states {
		f := policy.Flow{Protocol: st.Protocol, Port: st.To.Port()}
		opens := st.From.Addr() == s.Address
		if opens {
			f.Peer = st.To.Addr()
		} else {
			f.Peer = st.From.Addr()
		}
		f.Host = host(f.Peer)
		if opens && !s.opens(f) || !opens && !s.Policy.Takes(f, true) {
			outlawed = append(outlawed, st)
		}
	}
	return outlawed
}

// opens says whether the guest may open a flow, those to open addresses of names
// included.
func (s Sandbox) opens(f policy.Flow) bool {
	for i, addrs := range s.Opened {
		if slices.Contains(addrs, f.Peer) && s.Policy.OpensNamed(f, i) {
			return true
		}
	}
	return s.Policy.Opens(f)
}
