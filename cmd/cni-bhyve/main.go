// Command cni-bhyve is a CNI plugin: it gives a network namespace an interface on
// the network of package network, under its policy. See docs/network.md.
package main

import "github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/cniplugin"

func main() { cniplugin.Main() }
