package sandbox

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"

	apievents "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/guest"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/bundle"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/stdio"
)

// savedFor reads the saved sandbox that a container is to be restored from, and
// refuses one that this container cannot come from.
func (s *Sandbox) savedFor(r CreateRequest, network networkRequest, pod string) (*savedSandbox, error) {
	saved, err := readSaved(r.Checkpoint)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	alone := len(s.containers) == 1 && s.declared == nil && s.state == stateNew
	s.mu.Unlock()
	ns, _ := namespaces.Namespace(s.ctx)
	switch {
	case !alone || pod != "":
		return nil, fmt.Errorf("restore into a pod: %w", errdefs.ErrNotImplemented)
	case network.wanted() != (saved.MAC != nil):
		return nil, fmt.Errorf("restore with a network interface (%t), saved with one (%t): %w", network.wanted(), saved.MAC != nil, errdefs.ErrFailedPrecondition)
	case saved.Namespace != ns:
		return nil, fmt.Errorf("restore in namespace %q of what was saved in %q: %w", ns, saved.Namespace, errdefs.ErrFailedPrecondition)
	case saved.Terminal != r.Stdio.Terminal:
		return nil, fmt.Errorf("restore with a terminal (%t), saved with one (%t): %w", r.Stdio.Terminal, saved.Terminal, errdefs.ErrFailedPrecondition)
	}
	return saved, nil
}

// agrees says whether the trees of a guest's bundle are those that were saved.
func (s *savedSandbox) agrees(g *bundle.Guest) error {
	var roots, volumes []string
	for _, sh := range g.Shares {
		roots = append(roots, sh.Target)
	}
	for _, v := range g.Volumes {
		volumes = append(volumes, v.Name)
		if _, ok := s.Volumes[v.Name]; !ok {
			return fmt.Errorf("restore: volume %s is not one that was saved, or was replaced since: %w", v.Source, errdefs.ErrFailedPrecondition)
		}
	}
	slices.Sort(roots)
	slices.Sort(volumes)
	if !slices.Equal(roots, slices.Sorted(maps.Keys(s.Roots))) || !slices.Equal(slices.Compact(volumes), slices.Sorted(maps.Keys(s.Volumes))) {
		return fmt.Errorf("restore: the container has other volumes than the saved one: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// fromSaved makes a machine from a saved one.
func fromSaved(backend hypervisor.Backend, saved *savedSandbox) source {
	return maker(func(ctx context.Context, r machineRequest, nw *network, _ *guest.Image, cfg hypervisor.Config, book *receipt.Book) (hypervisor.Machine, origin, error) {
		b, ok := backend.(hypervisor.Restorer)
		if !ok {
			return nil, origin{}, fmt.Errorf("%s cannot restore machines: %w", backend.Name(), errdefs.ErrNotImplemented)
		}
		if err := nw.open(ctx, r, nil, book); err != nil {
			return nil, origin{}, err
		}
		nw.resumes(saved.MAC)
		cfg.NIC = nw.device()
		m, err := b.Restore(ctx, cfg, saved.machine(), book)
		if errdefs.IsNotFound(err) {
			err = fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
		}
		return m, origin{tier: poolv1.Tier_TIER_COLD}, err
	}).source()
}

// reattach gives the container that is in a restored machine the files and streams
// of this one. Its processes stay frozen until Start.
func (c *Container) reattach(ctx context.Context, saved *savedSandbox, g *bundle.Guest, init *process, undo *[]func(context.Context) error) error {
	*undo = append(*undo, c.closeTrees)
	var streams []string
	for _, s := range g.Shares {
		tree := saved.Roots[s.Target]
		sh, err := serveRoot(ctx, c.vm, tree.Stream, s, tree.Session)
		if err != nil {
			return err
		}
		c.addRoot(s, sh)
		streams = append(streams, tree.Stream)
	}
	c.vm.volumes.streams = saved.VolumeStreams
	for _, want := range g.Volumes {
		tree := saved.Volumes[want.Name]
		vol, err := c.vm.volumes.restore(ctx, c.vm, want, tree)
		if err != nil {
			return err
		}
		c.addTree(func(ctx context.Context) error { return c.vm.volumes.release(ctx, c.vm, vol) })
		streams = append(streams, tree.Stream)
	}
	io, err := c.openStdio(ctx, "", init.stdio)
	if err != nil {
		return err
	}
	init.setIO(io)
	*undo = append(*undo, func(ctx context.Context) error { c.closeStreams(ctx, init); return nil })
	for _, name := range io.Names() {
		streams = append(streams, c.streamPrefix("")+"/"+name)
	}
	return c.call(ctx, "attach", func(ctx context.Context) error {
		_, err := c.vm.agent.checkpoints.Attach(ctx, &agentv1.AttachRequest{Streams: streams})
		return err
	})
}

// restored is what is left of the restoring of a container until it is started.
type restored struct {
	// paused is true if its client had paused it when it was saved.
	paused bool
}

// announceRestored tells of a container's creation that the guest has told of
// long ago.
func (c *Container) announceRestored(init *process) {
	init.firstOf(&apievents.TaskCreate{})
	init.firstOf(&apievents.TaskStart{})
	c.sandbox.events.send(c.createEvent(c.sandbox.Pid()))
}

// startRestored is Start of a container that ran when it was saved: it goes on
// where it was.
func (c *Container) startRestored(ctx context.Context, p *process) error {
	c.mu.Lock()
	is := c.restored
	c.restored = nil
	c.mu.Unlock()
	if is == nil {
		return fmt.Errorf("start %s: it was started: %w", c.ID, errdefs.ErrFailedPrecondition)
	}
	err := c.call(ctx, "resume", c.resumeSaved)
	if err == nil && is.paused {
		c.wakes.Store(true)
		err = c.call(ctx, "resume", func(ctx context.Context) error {
			_, err := c.vm.agent.task.Resume(ctx, &taskapi.ResumeRequest{ID: c.guestID})
			return err
		})
	}
	if err != nil {
		c.mu.Lock()
		c.restored = is
		c.mu.Unlock()
		return err
	}
	if p.move(task.Status_CREATED, task.Status_RUNNING) {
		c.sandbox.events.send(&apievents.TaskStart{ContainerID: c.ID, Pid: c.sandbox.Pid()})
	}
	return c.runPoststart(ctx)
}

// becomes makes the container one that has been in a guest before. It is called
// before the guest can say something of it.
func (c *Container) becomes(saved *savedSandbox) {
	c.sandbox.mu.Lock()
	c.guestID = saved.Container
	c.sandbox.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.restored = &restored{paused: saved.Paused}
}

// sized is cfg with the machine that was saved.
func (s *savedSandbox) sized(cfg config.Config) config.Config {
	cfg.Machine.VCPUs, cfg.Machine.MemoryMiB, cfg.Machine.KernelArgs = s.Size.VCPUs, s.Size.MemoryMiB, s.KernelArgs
	return cfg
}

// cgroupFor is the control group of a copy. Clients give a copy the spec of what
// it was made of as it is, and a copy of the copy as well: a control group named
// after one of those belongs to it.
func (s *savedSandbox) cgroupFor(id, group string) string {
	if base := path.Base(group); base != s.Name && base != s.Container {
		return group
	}
	return path.Join(path.Dir(group), id)
}

// isRestored is true for a container whose processes wait for Start.
func (c *Container) isRestored() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.restored != nil
}

func (c *Container) addRoot(s bundle.Share, sh *share) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.roots == nil {
		c.roots = map[string]*share{}
	}
	c.roots[s.Target] = sh
	c.shares = append(c.shares, sh.proto(s))
	c.trees = append(c.trees, func(context.Context) error { return sh.close() })
}

func (c *Container) addTree(end func(context.Context) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trees = append(c.trees, end)
}

// save describes the volumes that the guest has mounted.
func (vs *volumes) save() (map[string]savedTree, int, error) {
	vs.mu.Lock()
	byName, streams := maps.Clone(vs.byName), vs.streams
	vs.mu.Unlock()
	all := map[string]savedTree{}
	for name, vol := range byName {
		select {
		case <-vol.changed:
		default:
			return nil, 0, fmt.Errorf("volume %s is being mounted or unmounted: %w", name, errdefs.ErrUnavailable)
		}
		tree, err := vol.share.save()
		if err != nil {
			return nil, 0, fmt.Errorf("volume %s: %w", name, err)
		}
		all[name] = tree
	}
	return all, streams, nil
}

// restore serves a volume that the guest has mounted already. It is undone by
// release.
func (vs *volumes) restore(ctx context.Context, v *vm, want bundle.Volume, saved savedTree) (*volume, error) {
	vol := &volume{name: want.Name, users: 1, changed: make(chan struct{})}
	var err error
	if vol.share, err = serveVolume(ctx, v, saved.Stream, want, saved.Session); err != nil {
		return nil, err
	}
	close(vol.changed)
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if vs.byName == nil {
		vs.byName = map[string]*volume{}
	}
	vs.byName[want.Name] = vol
	return vol, nil
}

// standsIn is a stdio that a saved container can go on with.
func (s *savedSandbox) standsIn(cfg stdio.Config) stdio.Config {
	has := func(name, where string) string {
		if slices.Contains(s.Streams, name) {
			return where
		}
		return ""
	}
	return stdio.Config{
		Terminal: cfg.Terminal,
		Stdin:    has("stdin", cfg.Stdin), Stdout: has("stdout", cfg.Stdout), Stderr: has("stderr", cfg.Stderr),
	}
}
