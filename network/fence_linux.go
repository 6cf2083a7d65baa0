package network

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/nft"
)

// The fence is a filter where frames leave the bridge for the host: it drops what
// the rules of a tap have not marked. A firewall that is reloaded by `nft flush
// ruleset` takes our rules with it, and then nothing comes from a guest any more.
// It is not nftables', and so not flushed.
const (
	fenceName     = "only-marked"
	fencePriority = 1

	// Offset of mark in struct __sk_buff, linux/bpf.h.
	skbMark = 8
	// linux/pkt_cls.h: the next filter decides; drop.
	actUnspec, actShot = -1, 2
)

// fenceProgram lets marked frames pass, without the mark: nobody else sees it.
func fenceProgram() *ebpf.ProgramSpec {
	const marked = "marked"
	return &ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, skbMark, asm.Word),
			asm.JEq.Imm(asm.R2, nft.Mark, marked),
			asm.Mov.Imm(asm.R0, actShot),
			asm.Return(),
			asm.Mov.Imm(asm.R2, 0).WithSymbol(marked),
			asm.StoreMem(asm.R1, skbMark, asm.R2, asm.Word),
			asm.Mov.Imm(asm.R0, actUnspec),
			asm.Return(),
		},
	}
}

var ingress = uint32(netlink.MakeHandle(0xffff, 0))

// hasFence says whether the filter is on the bridge.
func hasFence(bridge netlink.Link) (bool, error) {
	filters, err := netlink.FilterList(bridge, ingress)
	// Without a queueing discipline there is nothing to list.
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("fence of %s: %w", bridge.Attrs().Name, err)
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Name == fenceName {
			return true, nil
		}
	}
	return false, nil
}

// addFence puts the filter on the bridge, unless it is there.
func addFence(bridge netlink.Link) error {
	there, err := hasFence(bridge)
	if err != nil || there {
		return err
	}
	program, err := ebpf.NewProgram(fenceProgram())
	if err != nil {
		return fmt.Errorf("fence of %s: is there BPF in this kernel? %w: %w", bridge.Attrs().Name, errdefs.ErrUnavailable, err)
	}
	// The filter keeps it.
	defer program.Close()
	qdisc := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: bridge.Attrs().Index, Handle: ingress, Parent: netlink.HANDLE_INGRESS}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("fence of %s: queueing discipline: %w", bridge.Attrs().Name, err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: bridge.Attrs().Index, Parent: ingress, Handle: 1, Priority: fencePriority, Protocol: unix.ETH_P_ALL},
		Fd:          program.FD(), Name: fenceName, DirectAction: true,
	}
	// Two may have found it missing: the second replaces what the first has made.
	if err := netlink.FilterReplace(filter); err != nil {
		return fmt.Errorf("fence of %s: filter: %w", bridge.Attrs().Name, err)
	}
	return nil
}
