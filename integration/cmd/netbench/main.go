// Command netbench measures how fast package network gives out and takes back
// networks and changes policies, on a host of its own (package netbench).
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/netbench"
)

func main() {
	o := netbench.Options{Populations: []int{1, 100, 500}}
	flag.StringVar(&o.Dir, "out", "", "directory for network.json")
	flag.IntVar(&o.Rounds, "rounds", 50, "how often each verb is measured")
	flag.Func("sandboxes", "how many are there meanwhile, as in 1,100,500", func(text string) error {
		o.Populations = nil
		for word := range strings.SplitSeq(text, ",") {
			n, err := strconv.Atoi(word)
			if err != nil {
				return err
			}
			o.Populations = append(o.Populations, n)
		}
		return nil
	})
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := netbench.Run(ctx, os.Stdout, o); err != nil {
		fmt.Fprintln(os.Stderr, "netbench:", err)
		os.Exit(1)
	}
}
