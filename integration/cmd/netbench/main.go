// Command netbench measures how fast package network gives out and takes back
// networks and changes policies, on a host of its own (package netbench).
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/netbench"
)

func main() {
	out := flag.String("out", "", "directory for network.json")
	rounds := flag.Int("rounds", 50, "how often each verb is measured")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := netbench.Run(ctx, os.Stdout, *out, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "netbench:", err)
		os.Exit(1)
	}
}
