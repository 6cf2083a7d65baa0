package pool

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
)

// Options are what a pool is opened with.
type Options struct {
	// Backend makes the machines. It has to be a hypervisor.Adopter, and its
	// machines hypervisor.Parker and hypervisor.Transferable; without
	// hypervisor.Restorer and hypervisor.Checkpointer there is no cold tier.
	Backend hypervisor.Backend
	// Root is the directory of what survives a reboot, State that of what need
	// not. Both are made if they are missing.
	Root, State string

	// Concurrency is how many machines are made at the same time to wait, and as
	// many for claims. 0 is DefaultConcurrency.
	Concurrency int
	// Reserve is how many bytes of the host's memory the pool leaves alone. With
	// less available it makes nothing, and destroys what waits.
	Reserve uint64
	// Memory reads the host's memory; nil is HostMemory.
	Memory func() (Memory, error)

	// BootTimeout bounds the making of one machine, ClaimTimeout the time from an
	// offer to its confirmation. 0 for their defaults.
	BootTimeout  time.Duration
	ClaimTimeout time.Duration

	// Step, if set, is called between any two effects that a crash may part, with
	// the name of the one that has just happened. It is for tests.
	Step func(name string)
}

// Defaults of Options.
const (
	DefaultConcurrency  = 2
	DefaultBootTimeout  = time.Minute
	DefaultClaimTimeout = 20 * time.Second
)

const (
	// releaseTimeout bounds the end of one machine.
	releaseTimeout = 30 * time.Second
	// parkTimeout bounds stopping a process that runs, see hypervisor.Parker.
	parkTimeout = 10 * time.Second
	// checkpointTimeout bounds the saving of a machine, which writes its memory.
	checkpointTimeout = 5 * time.Minute
	// tendInterval is how often the pool looks whether anything is to be done
	// when nothing has told it so: host memory and idle time change by themselves.
	tendInterval = 2 * time.Second
)

func (o *Options) complete() error {
	if o.Backend == nil {
		return fmt.Errorf("pool: no backend: %w", errdefs.ErrInvalidArgument)
	}
	if _, ok := o.Backend.(hypervisor.Adopter); !ok {
		return fmt.Errorf("pool: machines of %s cannot change hands: %w", o.Backend.Name(), errdefs.ErrNotImplemented)
	}
	for _, dir := range []*string{&o.Root, &o.State} {
		if !filepath.IsAbs(*dir) {
			return fmt.Errorf("pool: directory %q: want an absolute path: %w", *dir, errdefs.ErrInvalidArgument)
		}
		*dir = filepath.Clean(*dir)
	}
	if o.Memory == nil {
		o.Memory = HostMemory
	}
	for _, d := range []struct {
		value *time.Duration
		or    time.Duration
	}{{&o.BootTimeout, DefaultBootTimeout}, {&o.ClaimTimeout, DefaultClaimTimeout}} {
		if *d.value <= 0 {
			*d.value = d.or
		}
	}
	if o.Concurrency <= 0 {
		o.Concurrency = DefaultConcurrency
	}
	return nil
}
