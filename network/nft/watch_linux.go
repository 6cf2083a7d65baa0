package nft

import (
	"context"
	"errors"
	"fmt"
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
	defer deadline(ctx, conn)()
	removed()
	for {
		msgs, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			// The kernel had more to tell than there was room for.
			removed()
			continue
		case err != nil:
			return fmt.Errorf("nftables: watch: %w", err)
		}
		for _, m := range msgs {
			if t.isRemoved(m) {
				removed()
				break
			}
		}
	}
}

// deadline ends what is read from a connection with ctx, until the result is
// called.
func deadline(ctx context.Context, conn *netlink.Conn) func() bool {
	return context.AfterFunc(ctx, func() {
		// One that is closed by now needs none.
		_ = conn.SetReadDeadline(time.Now())
	})
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
