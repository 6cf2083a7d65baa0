// Package pf puts policies into the words of pf.conf(5), and is the one place
// that runs pfctl(8) but for hypervisor/link, which asks whether its own fence is
// there. Rules go in by standard input, names by argument; there is no shell.
//
// The host's own ruleset is left alone: an administrator puts MainRules into
// pf.conf once, which name the anchors below "cube" and deny everything to guests
// that these say nothing of. Each network of the host has an anchor of its own,
// named after its bridge, and does nothing outside of it:
//
//	cube/BRIDGE              translation, and lines by which a packet finds the
//	                         rules of its sandbox alone
//	cube/BRIDGE/sandbox-ID   the sandbox's rules, tables and redirections
//
// A guest's packet is looked at twice. As it comes in on the tap, before the
// bridge hands it to the host (net.link.bridge.pfil_local_phys), it has to bear
// the guest's address. As it comes in on the bridge it has to pass the policy,
// which can now go by that address. What goes to a guest is seen going out on the
// bridge, and never on the tap: if_bridge(4) filters what it forwards, and not
// what the host sends.
//
// States are of the bridge (if-bound). One that floats would be found by a
// forged packet on another guest's tap, before any rule.
//
// A sandbox is loaded in one transaction, tables included. pf looks for a state
// before it looks at rules, so a changed policy has to kill the states that it
// outlaws: see Outlawed.
//
// A bandwidth is two pipes of dummynet(4), which lines of the network send the
// guest's frames through, on the bridge: see Pipe.
package pf

// Root is the anchor that everything is below. It has no rules itself.
const Root = "cube"

// NetworkAnchor is the path of the anchor of a bridge's network.
func NetworkAnchor(bridge string) string { return Root + "/" + bridge }

// Group is the group of the interfaces that guests are behind: bridges, and the
// taps on them. TapGroup has the taps alone.
const (
	Group    = "cubeguest"
	TapGroup = "cubetap"
)

// MainRules is what an administrator puts into pf.conf(5): the first two lines before
// the translation rules, the next two among them, the others before every filter
// rule that is "quick" and not for one interface.
//
// The first is for frames that if_bridge(4) leaves to the tap itself, which would
// bypass the bridge's rules: a copy of each broadcast, and what is sent to the
// tap's own hardware address. The second is where bandwidths are.
const MainRules = `ether block in quick on cubetap
ether anchor "cube/*" on cubeguest
nat-anchor "cube/*"
rdr-anchor "cube/*"
anchor "cube/*"
block drop quick on cubeguest all
`
