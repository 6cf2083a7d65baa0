package nft

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Denied is what has been stopped of a sandbox's packets.
type Denied struct {
	// Denied is what the policy has stopped, Spoofed what did not bear the
	// sandbox's own addresses; in packets.
	Denied, Spoofed uint64
}

// Denied are the counters of all sandboxes by name.
func (t Table) Denied() (map[string]Denied, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	all := map[string]Denied{}
	for _, table := range []*nftables.Table{t.ip(), t.netdev()} {
		objs, err := c.GetNamedObjects(table)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("nftables: list counters: %w", err)
		}
		for _, o := range objs {
			named, ok := o.(*nftables.NamedObj)
			if !ok {
				continue
			}
			counter, ok := named.Obj.(*expr.Counter)
			name, what, _ := strings.Cut(named.Name, "/")
			d := all[name]
			switch {
			case !ok:
				continue
			case what == "denied":
				d.Denied = counter.Packets
			case what == "spoofed":
				d.Spoofed = counter.Packets
			}
			all[name] = d
		}
	}
	return all, nil
}

// Sandboxes are the names of those that have rules, whole or in part, sorted.
func (t Table) Sandboxes() ([]string, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	var names []string
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyNetdev} {
		chains, err := c.ListChainsOfTableFamily(family)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("nftables: list chains: %w", err)
		}
		for _, ch := range chains {
			name, _, own := strings.Cut(ch.Name, "/")
			if ch.Table.Name == t.Bridge && (own || family == nftables.TableFamilyNetdev) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Check says whether all of the sandbox's chains are there and led to, and
// returns an error that names what is missing.
func (t Table) Check(s Sandbox) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	var errs []error
	for _, chain := range s.chains() {
		if _, err := c.ListChain(t.ip(), chain); err != nil {
			errs = append(errs, fmt.Errorf("chain %s: %w", chain, err))
		}
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		errs = append(errs, err)
	}
	if !slices.ContainsFunc(chains, func(ch *nftables.Chain) bool { return ch.Table.Name == t.Bridge && ch.Name == s.Name }) {
		errs = append(errs, fmt.Errorf("chain %s of tap %s: %w", s.Name, s.Tap, unix.ENOENT))
	}
	b := &batch{Conn: c, table: t, ip: t.ip(), sandbox: s}
	for _, e := range b.entries() {
		elems, err := c.GetSetElements(e.set)
		if err == nil && !slices.ContainsFunc(elems, func(have nftables.SetElement) bool {
			return slices.Equal(have.Key, e.elem.Key) && (e.elem.VerdictData == nil || chainOf(have) == e.elem.VerdictData.Chain)
		}) {
			err = unix.ENOENT
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s in set %s: %w", s.Address, e.set.Name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("nftables: rules of %s: %w", s.Name, err)
	}
	return nil
}
