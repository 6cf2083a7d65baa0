package command

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/containerd/log"
	"github.com/urfave/cli/v3"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/scrape"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/metrics"
)

const (
	// defaultRoot survives a reboot, defaultState need not.
	defaultRoot = "/var/lib/bhyve-pool"

	// gcPercent keeps the daemon small: it has little to do, and lies beside what
	// its machines need. A hundred of them take 8 MiB of it rather than 15.
	gcPercent = 20

	// reserveShare of the host's memory is left alone unless a figure is given.
	reserveShare = 8
	// closeTimeout bounds the daemon's end: a machine that is being made has to be
	// undone.
	closeTimeout = time.Minute
)

func serveCommand(backend hypervisor.Backend) *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "be the daemon, until SIGTERM; machines that wait stay for the next one",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "root", Value: defaultRoot, Usage: "`DIRECTORY` of templates and checkpoints; it has to survive a reboot"},
			&cli.StringFlag{Name: "state", Usage: "`DIRECTORY` of machines; need not survive a reboot", DefaultText: "that of the socket"},
			&cli.IntFlag{Name: "concurrency", Value: pool.DefaultConcurrency, Usage: "how many machines are made at the same time"},
			&cli.Uint64Flag{Name: "reserve-mib", Usage: "memory that is left to the host", DefaultText: "an eighth of it"},
			&cli.DurationFlag{Name: "boot-timeout", Value: pool.DefaultBootTimeout, Usage: "how long one machine may take to answer"},
			&cli.DurationFlag{Name: "claim-timeout", Value: pool.DefaultClaimTimeout, Usage: "how long a claimant may take to confirm"},
			&cli.StringFlag{Name: "metrics", Usage: scrape.Usage},
			&cli.StringFlag{Name: "log-level", Value: "info", Usage: "debug, info, warn or error"},
		},
		Action: func(ctx context.Context, c *cli.Command) error { return serve(ctx, c, backend) },
	}
}

func serve(ctx context.Context, c *cli.Command, backend hypervisor.Backend) (err error) {
	if err := log.SetLevel(c.String("log-level")); err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	socket, err := filepath.Abs(c.String(socketFlag))
	if err != nil {
		return err
	}
	state := c.String("state")
	if state == "" {
		state = filepath.Dir(socket)
	}
	reserve := c.Uint64("reserve-mib") << 20
	if !c.IsSet("reserve-mib") {
		memory, err := pool.HostMemory()
		if err != nil {
			return err
		}
		reserve = memory.Total / reserveShare
	}
	p, err := pool.Open(ctx, pool.Options{
		Backend: backend, Root: c.String("root"), State: state,
		Concurrency: c.Int("concurrency"), Reserve: reserve,
		BootTimeout: c.Duration("boot-timeout"), ClaimTimeout: c.Duration("claim-timeout"),
	})
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		err = errors.Join(err, p.Close(ctx))
	}()
	if address := c.String("metrics"); address != "" {
		server, err := metrics.Serve(p, address)
		if err != nil {
			return err
		}
		defer server.Close()
	}
	l, err := pool.Listen(socket)
	if err != nil {
		return err
	}
	log.G(ctx).WithField("socket", socket).Info("serving")
	return pool.Serve(ctx, p, l)
}
