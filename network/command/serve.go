package command

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/urfave/cli/v3"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/scrape"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/metrics"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/resolver"
)

const metricsFlag = "metrics"

func serveCommand() *cli.Command {
	return &cli.Command{
		Name: "serve", Usage: "until told to end: answer the DNS requests of guests whose resolver is the gateway, and open the names that their policies allow; " +
			"answer the host itself on published ports (FreeBSD); repair rules that others remove; log packets that were stopped (log_group); show metrics",
		Flags:  []cli.Flag{&cli.StringFlag{Name: metricsFlag, Usage: scrape.Usage}},
		Action: serve,
	}
}

// serve does all that the host and the configuration have use for.
func serve(ctx context.Context, c *cli.Command) error {
	n, err := open(c)
	if err != nil {
		return err
	}
	if err := n.Up(ctx); err != nil {
		return err
	}
	jobs := []func(context.Context) error{
		n.Keep,
		n.Forward,
		func(ctx context.Context) error { return n.Stopped(ctx, logStopped) },
	}
	if slices.Contains(n.Config().DNS, n.Config().Gateway) {
		job, err := resolve(ctx, n)
		if err != nil {
			return err
		}
		jobs = append(jobs, job, n.Expire)
	}
	if address := c.String(metricsFlag); address != "" {
		server, err := scrape.Serve(metrics.New(n), address)
		if err != nil {
			return err
		}
		defer server.Close()
	}
	log.G(ctx).WithField("network", n.Config().Bridge).Info("serving")
	return all(ctx, jobs)
}

// all does jobs until ctx ends or one of them fails. One that this host cannot do
// is left out.
func all(ctx context.Context, jobs []func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, len(jobs))
	for _, job := range jobs {
		go func() {
			err := job(ctx)
			if errdefs.IsNotImplemented(err) {
				log.G(ctx).WithError(err).Info("not served")
				<-ctx.Done()
				err = nil
			}
			if err == nil && ctx.Err() == nil {
				err = errors.New("ended by itself")
			}
			cancel()
			ended <- err
		}()
	}
	var errs []error
	for range jobs {
		errs = append(errs, <-ended)
	}
	return errors.Join(errs...)
}

// resolve returns the job of answering guests' DNS requests. Its sockets are open
// when it does.
func resolve(ctx context.Context, n *network.Network) (func(context.Context) error, error) {
	server, err := resolver.New(n, n.Config().Servers())
	if err != nil {
		return nil, err
	}
	addr := netip.AddrPortFrom(n.Config().Gateway, 53).String()
	var lc net.ListenConfig
	udp, err := lc.ListenPacket(ctx, "udp4", addr)
	if err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	tcp, err := lc.Listen(ctx, "tcp4", addr)
	if err != nil {
		udp.Close()
		return nil, fmt.Errorf("resolver: %w", err)
	}
	return func(ctx context.Context) error { return server.Serve(ctx, udp, tcp) }, nil
}

func logStopped(s network.Stopped) {
	fields := log.Fields{"sandbox": s.ID, "reason": s.Why, "ethertype": fmt.Sprintf("%#04x", s.EtherType)}
	if s.Source.IsValid() {
		fields["source"], fields["destination"], fields["protocol"] = s.Source, s.Destination, s.Protocol
	}
	if len(s.MAC) > 0 {
		fields["mac"] = s.MAC
	}
	log.L.WithFields(fields).Warn("a packet was stopped")
}
