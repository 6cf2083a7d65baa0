package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/guest"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/client"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
)

// source is where a sandbox's machine comes from: booted for it, or taken from
// those that are ready; with its network, which is there before the one and after
// the other, and goes after both. It keeps the contract of hypervisor.Backend's
// Launch.
type source func(context.Context, machineRequest, *guest.Image, hypervisor.Config, *receipt.Book) (hypervisor.Machine, *network, origin, error)

// origin is where a machine came from, and when on its way it changed hands.
type origin struct {
	// tier is the pool's, or TIER_BOOT for one that was booted here.
	tier     poolv1.Tier
	template string
	// owned is when it had changed hands, if it did; age for how long it had been
	// ready then.
	owned, age time.Duration
}

// fields are what the log says of it. Clock a is the machine owned; b and c are
// t_launch and t_agent.
func (o origin) fields() log.Fields {
	f := log.Fields{"path": strings.ToLower(strings.TrimPrefix(o.tier.String(), "TIER_"))}
	if o.template != "" {
		f["template"], f["t_owned"], f["age"] = o.template, milliseconds(o.owned), milliseconds(o.age)
	}
	return f
}

// maker makes a machine on a network of which nothing is open yet.
type maker func(context.Context, machineRequest, *network, *guest.Image, hypervisor.Config, *receipt.Book) (hypervisor.Machine, origin, error)

// source is a maker with the networks that are asked for, which are given back where
// it fails.
func (create maker) source() source {
	return func(ctx context.Context, r machineRequest, image *guest.Image, cfg hypervisor.Config, book *receipt.Book) (hypervisor.Machine, *network, origin, error) {
		nw, err := newNetwork(r, book)
		if err == nil {
			var m hypervisor.Machine
			var from origin
			if m, from, err = create(ctx, r, nw, image, cfg, book); err == nil {
				return m, nw, from, nil
			}
		}
		if nerr := nw.close(ctx); nerr != nil {
			log.G(ctx).WithError(nerr).Error("network of a machine that is not to be had could not be given back")
		}
		return nil, nil, origin{}, err
	}
}

// poolOrBoot takes machines from the pool as the configuration says, and makes
// the others with backend.
func poolOrBoot(backend hypervisor.Backend) source {
	return maker(func(ctx context.Context, r machineRequest, nw *network, image *guest.Image, cfg hypervisor.Config, book *receipt.Book) (hypervisor.Machine, origin, error) {
		// The pool's have no such memory.
		own := cfg.MemoryDir != "" && r.config.Pool.Mode == config.PoolAuto
		if r.config.Pool.Mode != config.PoolNever && !own {
			m, from, err := claim(ctx, backend, r, image, cfg, book)
			if err == nil {
				return m, from, plug(ctx, r, nw, m, book)
			}
			if r.config.Pool.Mode == config.PoolRequire || ctx.Err() != nil {
				return nil, origin{}, fmt.Errorf("machine from the pool: %w", err)
			}
			// No daemon is no news, where none is required.
			if !errors.Is(err, errNoDaemon) {
				log.G(ctx).WithError(err).WithField("machine", cfg.ID).Info("the pool gives no machine: booting one")
			}
		}
		if err := nw.open(ctx, r, nil, book); err != nil {
			return nil, origin{}, err
		}
		cfg.NIC = nw.device()
		m, err := backend.Launch(ctx, cfg, book)
		return m, origin{tier: poolv1.Tier_TIER_BOOT}, err
	}).source()
}

// plug gives a machine that is there its network, or ends it.
func plug(ctx context.Context, r machineRequest, nw *network, m hypervisor.Machine, book *receipt.Book) (err error) {
	if nw == nil {
		return nil
	}
	var port *hypervisor.NIC
	if p, ok := m.(hypervisor.Pluggable); ok {
		port = p.Port()
	}
	if port == nil {
		err = fmt.Errorf("machine %s has no port: %w", m.ID(), errdefs.ErrFailedPrecondition)
	} else {
		err = nw.open(ctx, r, port, book)
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyWait)
		defer cancel()
		return errors.Join(err, m.Destroy(undo))
	}
	return nil
}

// errNoDaemon is a pool that nobody serves.
var errNoDaemon = fmt.Errorf("no pool daemon: %w", errdefs.ErrUnavailable)

// claim takes a machine of exactly this image and size.
func claim(ctx context.Context, backend hypervisor.Backend, r machineRequest, image *guest.Image, cfg hypervisor.Config, book *receipt.Book) (hypervisor.Machine, origin, error) {
	p := r.config.Pool
	conn, err := client.Dial(ctx, p.Socket)
	if err != nil {
		return nil, origin{}, fmt.Errorf("%w: %w", errNoDaemon, err)
	}
	defer conn.Close()
	m, err := conn.Claim(ctx, client.Want{
		Shape:    poolv1.NewShape(image, cfg.VCPUs, cfg.MemoryMiB, cfg.Cmdline, r.network.wanted()),
		Template: p.Template,
		Boot:     p.Mode == config.PoolRequire,
	}, backend, book)
	if err != nil {
		return nil, origin{}, err
	}
	return m.Machine, origin{tier: m.Tier, template: m.Template, owned: m.Owned, age: m.Age}, nil
}
