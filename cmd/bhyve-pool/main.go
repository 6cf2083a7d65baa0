// Command bhyve-pool is the pool of machines that are ready before anybody asks
// for one: its daemon, `bhyve-pool serve`, and all that one tells or asks it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/host"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/command"
)

func main() {
	if handled, err := host.BecomeMachine(os.Args); handled || err != nil {
		exit(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	exit(command.New(host.Backend()).Run(ctx, os.Args))
}

func exit(err error) {
	if err == nil {
		os.Exit(0)
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(os.Stderr, "bhyve-pool:", text)
	}
	os.Exit(1)
}
