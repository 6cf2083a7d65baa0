package nft

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// Sandbox is what the rules of one sandbox are made from.
type Sandbox struct {
	// Name begins the name of everything that is the sandbox's: letters, digits,
	// '-', '_', '.'.
	Name string
	// Tap is the tap's name. It exists when Install is called.
	Tap     string
	Address netip.Addr
	MAC     net.HardwareAddr
	Policy  *policy.Compiled
	// Was is the policy before, if there was one: addresses of names that both
	// allow are kept.
	Was *policy.Compiled
}

// The chains of a sandbox, and the counters: denied is what the policy has
// stopped, spoofed what did not bear the sandbox's own addresses.
func (s Sandbox) out() string     { return s.Name + "/out" }
func (s Sandbox) in() string      { return s.Name + "/in" }
func (s Sandbox) host() string    { return s.Name + "/host" }
func (s Sandbox) nat() string     { return s.Name + "/nat" }
func (s Sandbox) flows() string   { return s.Name + "/flows" }
func (s Sandbox) deny() string    { return s.Name + "/deny" }
func (s Sandbox) denied() string  { return s.Name + "/denied" }
func (s Sandbox) spoofed() string { return s.Name + "/spoofed" }

// chains are in the order in which none is used by one before it.
func (s Sandbox) chains() []string {
	return []string{s.deny(), s.flows(), s.out(), s.in(), s.host(), s.nat()}
}

// begin is an empty batch for the sandbox, with what is there of it now: its sets,
// and its elements of the map of published ports.
func (t Table) begin(s Sandbox) (b *batch, sets []*nftables.Set, ports []nftables.SetElement, err error) {
	c, err := nftables.New()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("nftables: %w", err)
	}
	if sets, err = t.setsOf(c, s); err != nil {
		return nil, nil, nil, err
	}
	if ports, err = t.portsOf(c, s); err != nil {
		return nil, nil, nil, err
	}
	return &batch{Conn: c, table: t, ip: t.ip(), sandbox: s, nextSet: firstSetID}, sets, ports, nil
}

// Install makes the sandbox's rules, or makes them anew: counters keep their
// values, and open flows that the policy allows are not disturbed.
// errdefs.ErrAlreadyExists is in the error where another sandbox publishes a
// port of the policy's; then nothing has changed.
func (t Table) Install(s Sandbox) error {
	b, old, ports, err := t.begin(s)
	if err != nil {
		return err
	}
	known, err := t.known(b.Conn, s)
	if err != nil {
		return err
	}
	b.install(old, ports)
	for i, elems := range known {
		b.note(b.SetAddElements(&nftables.Set{Table: t.ip(), Name: s.set("names", i), HasTimeout: true}, elems))
	}
	if b.err != nil {
		return fmt.Errorf("nftables: rules of %s: %w", s.Name, b.err)
	}
	err = flush(b.Conn, "install rules of "+s.Name)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("another sandbox publishes the same port: %w: %w", errdefs.ErrAlreadyExists, err)
	}
	return err
}

// Remove removes everything of the sandbox. What is not there is no error, and
// Tap need not exist; Policy is not used.
func (t Table) Remove(s Sandbox) error {
	b, old, ports, err := t.begin(s)
	if err != nil {
		return err
	}
	b.remove(old, ports)
	if b.err != nil {
		return fmt.Errorf("nftables: remove rules of %s: %w", s.Name, b.err)
	}
	// All in one: each transaction that removes something makes this wait until no
	// processor can look at it any more.
	return flush(b.Conn, "remove rules of "+s.Name)
}

// RemoveAll is Remove for a sandbox of which only the name is known.
func (t Table) RemoveAll(name string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	s := Sandbox{Name: name}
	elems, err := c.GetSetElements(t.shared().from)
	if err != nil {
		return fmt.Errorf("nftables: address of %s: %w", name, err)
	}
	for _, e := range elems {
		if addr, ok := netip.AddrFromSlice(e.Key); ok && chainOf(e) == s.out() {
			s.Address = addr
		}
	}
	return t.Remove(s)
}

// setKinds are what a sandbox has sets for. Those of a kind are numbered from 0.
var setKinds = []string{"deny", "resolver", "allow", "accept", "names"}

func (s Sandbox) set(kind string, i int) string { return fmt.Sprintf("%s/%s-%d", s.Name, kind, i) }

// setsOf are the sandbox's own sets as they are. They are asked for by name: a
// list would be of everybody's.
func (t Table) setsOf(c *nftables.Conn, s Sandbox) ([]*nftables.Set, error) {
	var own []*nftables.Set
	for _, kind := range setKinds {
		for i := 0; ; i++ {
			set, err := c.GetSetByName(t.ip(), s.set(kind, i))
			if errors.Is(err, unix.ENOENT) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("nftables: sets of %s: %w", s.Name, err)
			}
			own = append(own, set)
		}
	}
	return own, nil
}

// known are the addresses of names that are to stay, by the number that their set
// will have.
func (t Table) known(c *nftables.Conn, s Sandbox) (map[int][]nftables.SetElement, error) {
	if s.Was == nil {
		return nil, nil
	}
	known := map[int][]nftables.SetElement{}
	for was, m := range s.Was.Names {
		is := slices.IndexFunc(s.Policy.Names, func(n policy.NamedMatch) bool { return reflect.DeepEqual(m, n) })
		set, err := c.GetSetByName(t.ip(), s.set("names", was))
		if is < 0 || errors.Is(err, unix.ENOENT) {
			continue
		}
		var elems []nftables.SetElement
		if err == nil {
			elems, err = c.GetSetElements(set)
		}
		if err != nil {
			return nil, fmt.Errorf("nftables: names of %s: %w", s.Name, err)
		}
		for _, e := range elems {
			known[is] = append(known[is], nftables.SetElement{Key: e.Key, Timeout: max(e.Expires, time.Second)})
		}
	}
	return known, nil
}

// Resolved opens addresses of the i-th of the policy's Names for a time.
func (t Table) Resolved(s Sandbox, i int, addrs []netip.Addr, ttl time.Duration) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	set := &nftables.Set{Table: t.ip(), Name: s.set("names", i), HasTimeout: true}
	var elems []nftables.SetElement
	for _, a := range addrs {
		elems = append(elems, nftables.SetElement{Key: a.AsSlice(), Timeout: ttl})
	}
	if err := c.SetAddElements(set, elems); err != nil {
		return fmt.Errorf("nftables: names of %s: %w", s.Name, err)
	}
	return flush(c, "add addresses of names of "+s.Name)
}

// portsOf are the elements of the map of published ports that lead to the
// sandbox.
func (t Table) portsOf(c *nftables.Conn, s Sandbox) ([]nftables.SetElement, error) {
	if _, err := c.ListChain(t.ip(), layout); errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	all, err := c.GetSetElements(t.shared().published)
	if err != nil {
		return nil, fmt.Errorf("nftables: list published ports: %w", err)
	}
	var own []nftables.SetElement
	for _, e := range all {
		if chainOf(e) == s.nat() {
			own = append(own, nftables.SetElement{Key: e.Key})
		}
	}
	return own, nil
}

// chainOf is the chain that an element of a map of verdicts leads to. The
// library returns such a value as the bytes of NFTA_DATA_VERDICT.
func chainOf(e nftables.SetElement) string {
	ad, err := netlink.NewAttributeDecoder(e.Val)
	if err != nil {
		return ""
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_VERDICT_CHAIN {
			return ad.String()
		}
	}
	return ""
}

// batch is a transaction about one sandbox. The first error stays.
type batch struct {
	*nftables.Conn
	table   Table
	ip      *nftables.Table
	sandbox Sandbox
	nextSet uint32
	err     error
}

func (b *batch) note(err error) {
	if b.err == nil {
		b.err = err
	}
}

func (b *batch) chain(name string) *nftables.Chain { return &nftables.Chain{Table: b.ip, Name: name} }

func (b *batch) rule(chain string, parts ...[]expr.Any) {
	b.AddRule(&nftables.Rule{Table: b.ip, Chain: b.chain(chain), Exprs: join(parts...)})
}

// entries are how the base chains find the sandbox's.
func (b *batch) entries() []struct {
	set  *nftables.Set
	elem nftables.SetElement
} {
	s, shared := b.sandbox, b.table.shared()
	if !s.Address.IsValid() {
		return nil
	}
	key := s.Address.AsSlice()
	jump := func(chain string) nftables.SetElement {
		return nftables.SetElement{Key: key, VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
	}
	return []struct {
		set  *nftables.Set
		elem nftables.SetElement
	}{
		{shared.from, jump(s.out())},
		{shared.to, jump(s.in())},
		{shared.toHost, jump(s.host())},
		{shared.guests, nftables.SetElement{Key: key}},
	}
}

// clear empties the chains, which makes them if they are not there, and removes
// sets and ports.
func (b *batch) clear(old []*nftables.Set, ports []nftables.SetElement) {
	b.AddTable(b.ip)
	for _, name := range b.sandbox.chains() {
		b.AddChain(b.chain(name))
		b.FlushChain(b.chain(name))
	}
	for _, set := range old {
		b.DelSet(set)
	}
	if len(ports) > 0 {
		b.note(b.SetDeleteElements(b.table.shared().published, ports))
	}
}

func (b *batch) remove(old []*nftables.Set, ports []nftables.SetElement) {
	b.clear(old, ports)
	s := b.table.shared()
	for _, set := range []*nftables.Set{s.guests, s.from, s.to, s.toHost} {
		b.note(b.AddSet(set, nil))
	}
	for _, e := range b.entries() {
		// Adding first makes that there is something to delete.
		b.note(b.SetAddElements(e.set, []nftables.SetElement{e.elem}))
		b.note(b.SetDeleteElements(e.set, []nftables.SetElement{e.elem}))
	}
	chains := b.sandbox.chains()
	for i := range chains {
		b.DelChain(b.chain(chains[len(chains)-1-i]))
	}
	counter := &nftables.NamedObj{Table: b.ip, Name: b.sandbox.denied(), Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}}
	b.AddObj(counter)
	b.DeleteObject(counter)
	b.removeIngress()
}

// removeIngress removes what is at the tap. Some kernels take the chain away with
// its device, so it too is added first: without a hook, which changes none that is
// there.
func (b *batch) removeIngress() {
	table := b.AddTable(b.table.netdev())
	chain := b.AddChain(&nftables.Chain{Table: table, Name: b.sandbox.Name})
	counter := &nftables.NamedObj{Table: table, Name: b.sandbox.spoofed(), Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}}
	b.AddObj(counter)
	b.DelChain(chain)
	b.DeleteObject(counter)
}
