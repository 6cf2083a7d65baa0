// Package pf puts policies into the words of pf.conf(5), and is the one place
// that runs pfctl(8). Rules go in by standard input, names by argument; there is
// no shell.
//
// The host's own ruleset is left alone: an administrator puts MainRules into
// pf.conf once, which name the anchor "cube" and deny everything on the taps of
// guests that the anchor says nothing of. Everything else happens below the
// anchor:
//
//	cube              one line a sandbox, by the name of its tap, so that a packet
//	                  never walks through the rules of others; translation
//	cube/sandbox-ID   the sandbox's rules, tables and redirections
//
// A sandbox is loaded in one transaction, tables included. pf looks for a state
// before it looks at rules, so a changed policy has to kill the states that it
// outlaws: see Outlawed.
package pf

// Root is the anchor that everything is below.
const Root = "cube"

// Group is the group of interfaces that the taps of guests are in.
const Group = "cubeguest"

// MainRules is what an administrator puts into pf.conf(5): the first two lines
// among the translation rules, the others before every filter rule that is
// "quick" and not for one interface.
const MainRules = `nat-anchor "cube"
rdr-anchor "cube/*"
anchor "cube"
block drop quick on cubeguest all
`
