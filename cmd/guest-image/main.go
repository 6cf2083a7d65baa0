// Command guest-image builds the guest image, or moves the lock file that it
// is built from to newer packages. See docs/guest-image.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/guest/build"
)

func main() {
	o := build.Options{Logf: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "guest-image: "+format+"\n", args...)
	}}
	flag.StringVar(&o.Agent, "agent", "bin/bhyve-agent", "the agent's `program`")
	flag.StringVar(&o.Lock, "lock", "guest/inputs.lock", "the lock `file`")
	flag.StringVar(&o.Kernel, "kernel", "", "a vmlinux `file` that needs no modules, instead of the lock file's kernel")
	flag.StringVar(&o.Cache, "cache", ".cache/debs", "`directory` that keeps fetched packages")
	flag.StringVar(&o.Out, "out", ".cache/guest", "`directory` of the image")
	update := flag.Bool("update", false, "move the lock file to Debian's current versions, and build nothing")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, *update); err != nil {
		o.Logf("%v", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o build.Options, update bool) error {
	if update {
		return build.Update(ctx, o.Lock, o.Logf)
	}
	_, err := build.Image(ctx, o)
	return err
}
