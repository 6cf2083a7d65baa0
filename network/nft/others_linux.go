package nft

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Obstacles names the chains of others which, as far as can be seen, stop what guests
// send and are sent, whatever their policies allow: those through which forwarded
// packets pass and which drop what no rule of theirs accepts, in a table that has no
// rule for the bridge. What iptables-legacy has made is not nftables' and not seen.
func (t Table) Obstacles() ([]string, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	var found []string
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyINet} {
		chains, err := c.ListChainsOfTableFamily(family)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("nftables: list chains: %w", err)
		}
		for _, chain := range chains {
			if chain.Hooknum == nil || *chain.Hooknum != *nftables.ChainHookForward || chain.Policy == nil || *chain.Policy != nftables.ChainPolicyDrop {
				continue
			}
			knows, err := t.namedIn(c, chain.Table, chains)
			if err != nil {
				return nil, err
			}
			if !knows {
				found = append(found, fmt.Sprintf("chain %s of table %s %s", chain.Name, familyNames[family], chain.Table.Name))
			}
		}
	}
	return found, nil
}

// familyNames are nft(8)'s.
var familyNames = map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyINet: "inet"}

// namedIn says whether a rule of the table is for packets from or to the bridge.
func (t Table) namedIn(c *nftables.Conn, table *nftables.Table, chains []*nftables.Chain) (bool, error) {
	for _, chain := range chains {
		if chain.Table.Name != table.Name {
			continue
		}
		rules, err := c.GetRules(table, chain)
		if err != nil {
			return false, fmt.Errorf("nftables: list rules of chain %s of table %s: %w", chain.Name, table.Name, err)
		}
		for _, r := range rules {
			if t.namedBy(r.Exprs) {
				return true, nil
			}
		}
	}
	return false, nil
}

// namedBy says whether a rule asks for the bridge, or for names that begin as its
// does.
func (t Table) namedBy(exprs []expr.Any) bool {
	byName := false
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Meta:
			byName = e.Key == expr.MetaKeyIIFNAME || e.Key == expr.MetaKeyOIFNAME
		case *expr.Cmp:
			// A name that ends with a NUL is whole.
			name := bytes.TrimRight(e.Data, "\x00")
			whole := len(name) < len(e.Data)
			if byName && e.Op == expr.CmpOpEq && (string(name) == t.Bridge || !whole && bytes.HasPrefix([]byte(t.Bridge), name)) {
				return true
			}
			byName = false
		default:
			byName = false
		}
	}
	return false
}
