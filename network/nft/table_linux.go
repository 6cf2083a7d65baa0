package nft

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Table is the part of the host's firewall that belongs to one bridge, in the
// network namespace of the calling thread. It holds nothing open, and is safe
// for concurrent use, by several processes too.
type Table struct {
	// Bridge is the bridge's name, and the table's.
	Bridge string
	// Subnet is what the guests' addresses are taken from.
	Subnet netip.Prefix
	// Gateway is the host's address on the bridge, MAC its hardware address.
	Gateway netip.Addr
	MAC     net.HardwareAddr
	// LogGroup is the group of nfnetlink_log that is told of packets that were
	// dropped; 0 for the kernel's log.
	LogGroup uint16
}

// Mark is what a frame bears that the rules of a tap have let in, from there to
// the bridge: 'cube'.
const Mark = 0x63756265

// layout is what the parts that all sandboxes share are made from. The name of
// a chain that is never used has it, so that another version's is noticed.
const layout = "layout-1"

func (t Table) ip() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: t.Bridge}
}

func (t Table) netdev() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyNetdev, Name: t.Bridge}
}

// The ids by which sets are known within a transaction; a sandbox's own have
// those from firstSetID on.
const (
	guestsID = iota + 1
	fromID
	toID
	toHostID
	publishedID
	firstSetID
)

// shared are the sets by which the base chains find a sandbox's chains.
type shared struct{ guests, from, to, toHost, published *nftables.Set }

func (t Table) shared() shared {
	verdicts := func(id uint32, name string, key nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t.ip(), ID: id, Name: name, IsMap: true, KeyType: key, DataType: nftables.TypeVerdict}
	}
	port := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	published := verdicts(publishedID, "published", port)
	published.Concatenation = true
	return shared{
		guests:    &nftables.Set{Table: t.ip(), ID: guestsID, Name: "guests", KeyType: nftables.TypeIPAddr},
		from:      verdicts(fromID, "from", nftables.TypeIPAddr),
		to:        verdicts(toID, "to", nftables.TypeIPAddr),
		toHost:    verdicts(toHostID, "to-host", nftables.TypeIPAddr),
		published: published,
	}
}

// Ensure makes the tables, the chains that are hooked into the kernel and the
// empty sets, unless they are there. errdefs.ErrUnavailable is in the error where
// the kernel has no nftables.
func (t Table) Ensure() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	if _, err := c.ListChain(t.ip(), layout); err == nil {
		return nil
	}
	t.addBase(c)
	return flush(c, "make table "+t.Bridge)
}

func (t Table) addBase(c *nftables.Conn) {
	ip := c.AddTable(t.ip())
	c.AddTable(t.netdev())
	s := t.shared()
	for _, set := range []*nftables.Set{s.guests, s.from, s.to, s.toHost, s.published} {
		// Without elements, nothing in here can fail.
		_ = c.AddSet(set, nil)
	}
	fromBridge := ifname(expr.MetaKeyIIFNAME, t.Bridge, expr.CmpOpEq)
	toBridge := ifname(expr.MetaKeyOIFNAME, t.Bridge, expr.CmpOpEq)
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	for _, chain := range []struct {
		name     string
		kind     nftables.ChainType
		hook     *nftables.ChainHook
		priority *nftables.ChainPriority
		rules    [][]expr.Any
	}{
		{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, [][]expr.Any{
			join(fromBridge, inSet(ipSource, s.guests, true), drop),
			join(fromBridge, byMap(ipSource, s.from)),
			join(toBridge, inSet(ipDestination, s.guests, true), drop),
			join(toBridge, byMap(ipDestination, s.to)),
		}},
		{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, [][]expr.Any{
			join(fromBridge, inSet(ipSource, s.guests, true), drop),
			join(fromBridge, byMap(ipSource, s.toHost)),
		}},
		{"prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, [][]expr.Any{
			join(ifname(expr.MetaKeyIIFNAME, t.Bridge, expr.CmpOpNeq), destinedToHost(), byPort(s.published)),
		}},
		{"output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, [][]expr.Any{
			join(destinedToHost(), byPort(s.published)),
		}},
		{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, [][]expr.Any{
			join(inPrefix(ipSource, t.Subnet), ifname(expr.MetaKeyOIFNAME, t.Bridge, expr.CmpOpNeq), []expr.Any{&expr.Masq{}}),
			// Connections of the host to a published port of its loopback.
			join(inPrefix(ipSource, loopback), toBridge, []expr.Any{&expr.Masq{}}),
		}},
		{name: layout},
	} {
		ch := &nftables.Chain{Name: chain.name, Table: ip, Type: chain.kind, Hooknum: chain.hook, Priority: chain.priority}
		if chain.hook != nil {
			policy := nftables.ChainPolicyAccept
			ch.Policy = &policy
		}
		c.AddChain(ch)
		// In case two have found it missing: the second makes it again.
		c.FlushChain(ch)
		for _, r := range chain.rules {
			c.AddRule(&nftables.Rule{Table: ip, Chain: ch, Exprs: r})
		}
	}
}

// Destroy removes the tables with everything in them. What is not there is no
// error.
func (t Table) Destroy() error {
	for _, table := range []*nftables.Table{t.ip(), t.netdev()} {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		c.DelTable(table)
		if err := flush(c, "remove table "+t.Bridge); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// flush commits a transaction.
func flush(c *nftables.Conn, what string) error {
	err := c.Flush()
	if err == nil {
		return nil
	}
	for _, missing := range []error{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT} {
		if errors.Is(err, missing) {
			err = fmt.Errorf("is nf_tables in this kernel? %w: %w", errdefs.ErrUnavailable, err)
			break
		}
	}
	return fmt.Errorf("nftables: %s: %w", what, err)
}
