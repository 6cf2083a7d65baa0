// Package nft puts policies into the words of nftables (nft(8)): one table for
// the bridge, and in it some chains and sets a sandbox, all of whose names begin
// with the sandbox's. In the terms of nft(8), for a sandbox at 10.77.0.10:
//
//	table ip cubenet0 {
//		set guests { type ipv4_addr; elements = { 10.77.0.10 } }
//		map from { type ipv4_addr : verdict; elements = { 10.77.0.10 : jump sandbox-ID/out } }
//		…
//		chain forward {
//			type filter hook forward priority filter; policy accept;
//			iifname "cubenet0" ip saddr != @guests drop
//			iifname "cubenet0" ip saddr vmap @from
//			oifname "cubenet0" ip daddr != @guests drop
//			oifname "cubenet0" ip daddr vmap @to
//		}
//		chain sandbox-ID/out { … }
//	}
//	table netdev cubenet0 {
//		chain sandbox-ID { type filter hook ingress device "cube0a4d000a" priority filter; policy drop; … }
//	}
//
// The way to a sandbox's rules is one look-up, however many there are. Each
// change is one transaction of the kernel's: packets meet the rules of before or
// those of after.
//
// A sandbox's chain returns for what it lets pass, so that a flow between two
// sandboxes has to pass both, and drops the rest. It looks at every packet of a
// flow in the direction in which it was opened, not at the first one alone: a
// changed policy holds for open flows too, and flows that are still allowed are
// not touched.
package nft
