package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watch calls removed when somebody has removed one of the tables, or may have,
// and once at its beginning, until ctx ends. It works on the calling goroutine
// alone.
func (t Table) Watch(ctx context.Context, removed func()) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err == nil {
		defer conn.Close()
		err = conn.JoinGroup(unix.NFNLGRP_NFTABLES)
	}
	if err != nil {
		return fmt.Errorf("nftables: watch: %w", err)
	}
	removed()
	// What the kernel could not tell may have been that.
	err = receive(ctx, conn, removed, func(msgs []netlink.Message) {
		if slices.ContainsFunc(msgs, t.isRemoved) {
			removed()
		}
	})
	if err != nil {
		return fmt.Errorf("nftables: watch: %w", err)
	}
	return nil
}

// receive calls f with what the kernel sends on conn, and lost when it had more to
// tell than there was room for, until ctx ends.
func receive(ctx context.Context, conn *netlink.Conn, lost func(), f func([]netlink.Message)) error {
	defer context.AfterFunc(ctx, func() {
		// One that is closed by now needs none.
		_ = conn.SetReadDeadline(time.Now())
	})()
	for {
		msgs, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			lost()
		case err != nil:
			return err
		default:
			f(msgs)
		}
	}
}

// isRemoved is true for the message that one of the tables is gone.
func (t Table) isRemoved(m netlink.Message) bool {
	if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE || len(m.Data) < nfgenmsg {
		return false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[nfgenmsg:])
	if err != nil {
		return false
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_TABLE_NAME {
			return ad.String() == t.Bridge
		}
	}
	return false
}
