// Command bhyve-net shows and mends what sandboxes have of this host's network,
// and changes their policies. See docs/network.md.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := command.New().Run(ctx, os.Args); err != nil {
		if text := err.Error(); text != "" {
			fmt.Fprintln(os.Stderr, "bhyve-net:", text)
		}
		os.Exit(1)
	}
}
