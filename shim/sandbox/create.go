package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/steps"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/bundle"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/rootfs"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/stdio"
)

// CreateRequest is what containerd wants a container made of.
type CreateRequest struct {
	ID string
	// Bundle is the bundle's directory on the host.
	Bundle string
	// Rootfs are the mounts that make the root filesystem, in order.
	Rootfs []*types.Mount
	Stdio  stdio.Config
	Config config.Config
	// Checkpoint is the directory of a saved sandbox that the container is made
	// of, with its processes. Empty for a container that starts anew.
	Checkpoint string
}

// undoTimeout bounds the clean-up after a Create that failed.
const undoTimeout = 15 * time.Second

// Create makes a container in the sandbox, and boots the sandbox's machine for
// the first one. What the host alone can refuse is refused before that. On
// error nothing of the container is left, on the host or in the guest; a
// machine that was booted for it stays until Shutdown.
func (s *Sandbox) Create(ctx context.Context, r CreateRequest) (_ *Container, err error) {
	ctx, record := steps.With(ctx)
	defer steps.Begin(ctx, "create")()
	endSpec := steps.Begin(ctx, "spec")
	book, err := OpenReceipts(r.Bundle)
	if err != nil {
		return nil, err
	}
	c := &Container{ID: r.ID, Bundle: r.Bundle, rootfs: r.Rootfs, guestID: r.ID, sandbox: s, book: book, steps: record, processes: map[string]*process{}}
	if err := s.reserve(c); err != nil {
		return nil, err
	}

	var undo []func(context.Context) error
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		for i := len(undo) - 1; i >= 0; i-- {
			if uerr := undo[i](ctx); uerr != nil {
				log.G(ctx).WithError(uerr).WithField("container", r.ID).Warn("clean-up after a failed create")
			}
		}
		s.forget(c)
	}()

	spec, err := bundle.Load(r.Bundle)
	if err != nil {
		return nil, err
	}
	if err := r.Stdio.Validate(); err != nil {
		return nil, err
	}
	if c.resources, err = bundle.Resources(spec); err != nil {
		return nil, err
	}
	place, err := s.placeOf(ctx, spec, r.Config)
	if err != nil {
		return nil, err
	}
	if err := c.oweHooks(spec); err != nil {
		return nil, err
	}
	undo = append(undo, c.payHooks)
	endSpec()
	endRootfs := steps.Begin(ctx, "rootfs")
	rootfs, err := c.mountRootfs(spec, &undo)
	if err != nil {
		return nil, err
	}
	endRootfs()
	pod := s.podOf(spec, place.network)
	if pod.PIDNS, err = s.targetPIDNS(ctx, spec); err != nil {
		return nil, err
	}
	guest, err := bundle.Translate(r.ID, pod, spec, rootfs)
	if err != nil {
		return nil, err
	}
	if err := bundle.CheckProgram(rootfs, spec); err != nil {
		return nil, err
	}
	for _, what := range guest.Ignored {
		log.G(ctx).WithField("container", r.ID).Warnf("has no meaning in a guest and is ignored: %s", what)
	}

	var saved *savedSandbox
	init := newProcess("", r.Stdio)
	if r.Checkpoint != "" {
		if saved, err = s.savedFor(r, place.network, pod.ID); err != nil {
			return nil, err
		}
		if err := saved.agrees(guest); err != nil {
			return nil, err
		}
		place.config = saved.sized(place.config)
		place.cgroup = saved.cgroupFor(r.ID, place.cgroup)
		init = newProcess("", saved.standsIn(r.Stdio))
		c.becomes(saved)
		// The guest may have something to tell of it at once.
		if err := c.addProcess(init); err != nil {
			return nil, err
		}
	}
	endMachine := steps.Begin(ctx, "machine")
	c.vm, err = s.machine(ctx, machineRequest{
		saved:    saved,
		id:       cmp.Or(bundle.SandboxID(spec), r.ID),
		bundle:   r.Bundle,
		member:   r.ID,
		config:   place.config,
		size:     place.config.Machine.Size(),
		cgroup:   place.cgroup,
		network:  place.network,
		hostname: spec.Hostname,
	})
	if err != nil {
		return nil, err
	}
	endMachine()
	if err := c.vm.home.join(c.ID, c.Bundle); err != nil {
		return nil, err
	}
	undo = append(undo, func(ctx context.Context) error { c.vm.home.leave(ctx, c.ID); return nil })
	if err := c.runCreateHooks(ctx, spec, guest.Hooks); err != nil {
		return nil, err
	}
	if saved != nil {
		if err := c.reattach(ctx, saved, guest, init, &undo); err != nil {
			return nil, err
		}
		c.announceRestored(init)
		if err := s.admit(c); err != nil {
			return nil, err
		}
		return c, nil
	}
	endTrees := steps.Begin(ctx, "trees")
	if err := c.serveTrees(ctx, guest, &undo); err != nil {
		return nil, err
	}
	endTrees()
	// An answer that is lost is no proof that nothing was done.
	undo = append(undo, c.deleteBundle)
	endBundle := steps.Begin(ctx, "bundle")
	if err := c.createBundle(ctx, guest.Spec); err != nil {
		return nil, err
	}

	endBundle()
	endStdio := steps.Begin(ctx, "stdio")
	streams, err := c.openStdio(ctx, "", r.Stdio)
	if err != nil {
		return nil, err
	}
	endStdio()
	init.setIO(streams)
	undo = append(undo, func(ctx context.Context) error { c.closeStreams(ctx, init); return nil })
	if err := c.addProcess(init); err != nil {
		return nil, err
	}
	undo = append(undo, c.deleteTask)
	endTask := steps.Begin(ctx, "task")
	if err := c.createTask(ctx, streams.Guest()); err != nil {
		return nil, err
	}
	endTask()
	if err := s.admit(c); err != nil {
		return nil, err
	}
	return c, nil
}

// mountRootfs mounts what containerd handed over at its usual place in the
// bundle. Without mounts, the root filesystem is where the spec says.
func (c *Container) mountRootfs(spec *specs.Spec, undo *[]func(context.Context) error) (string, error) {
	if len(c.rootfs) == 0 {
		c.unmountRootfs = func(context.Context) error { return nil }
		return c.rootfsInSpec(spec)
	}
	target := filepath.Join(c.Bundle, "rootfs")
	if err := os.Mkdir(target, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("rootfs: %w", err)
	}
	var err error
	c.unmountRootfs, err = rootfs.Mount(c.book, c.rootfs, target, filepath.Join(c.Bundle, "rootfs-parts"))
	*undo = append(*undo, c.unmountRootfs)
	if err != nil {
		return "", err
	}
	return target, nil
}

// rootfsInSpec is root.path of the spec, which may be relative to the bundle.
func (c *Container) rootfsInSpec(spec *specs.Spec) (string, error) {
	if spec.Root == nil {
		return "", fmt.Errorf("no mounts for a rootfs and no root in the spec: %w", errdefs.ErrInvalidArgument)
	}
	rootfs := spec.Root.Path
	if !filepath.IsAbs(rootfs) {
		rootfs = filepath.Join(c.Bundle, rootfs)
	}
	st, err := os.Stat(rootfs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("rootfs %s: %w", rootfs, errdefs.ErrNotFound)
	case err != nil:
		return "", fmt.Errorf("rootfs: %w", err)
	case !st.IsDir():
		return "", fmt.Errorf("rootfs %s is not a directory: %w", rootfs, errdefs.ErrInvalidArgument)
	}
	return rootfs, nil
}

// serveTrees gives the guest what the bundle needs of the host's files.
func (c *Container) serveTrees(ctx context.Context, g *bundle.Guest, undo *[]func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.vm.agentTimeout)
	defer cancel()
	*undo = append(*undo, c.closeTrees)
	for _, s := range g.Shares {
		sh, err := serveRoot(ctx, c.vm, "9p/"+c.guestID+"/"+s.Target, s, nil)
		if err != nil {
			return err
		}
		c.addRoot(s, sh)
	}
	for _, want := range g.Volumes {
		vol, err := c.vm.volumes.acquire(ctx, c.vm, want)
		if err != nil {
			return err
		}
		c.addTree(func(ctx context.Context) error { return c.vm.volumes.release(ctx, c.vm, vol) })
	}
	return nil
}

func (c *Container) createTask(ctx context.Context, g stdio.Config) error {
	return c.call(ctx, "create", func(ctx context.Context) error {
		_, err := c.vm.agent.task.Create(ctx, &taskapi.CreateTaskRequest{
			ID:       c.guestID,
			Bundle:   agentproto.BundleDir(c.guestID),
			Terminal: g.Terminal,
			Stdin:    g.Stdin,
			Stdout:   g.Stdout,
			Stderr:   g.Stderr,
		})
		return err
	})
}

// deleteTask undoes createTask.
func (c *Container) deleteTask(ctx context.Context) error {
	err := c.call(ctx, "delete", func(ctx context.Context) error {
		_, err := c.vm.agent.task.Delete(ctx, &taskapi.DeleteRequest{ID: c.guestID})
		return err
	})
	if errdefs.IsNotFound(err) || c.machineEnded() {
		return nil
	}
	return err
}

// podOf is what the sandbox is to the container of spec.
func (s *Sandbox) podOf(spec *specs.Spec, n networkRequest) bundle.Pod {
	s.mu.Lock()
	d := s.declared
	s.mu.Unlock()
	if d == nil {
		return bundle.Pod{ID: bundle.SandboxID(spec), Files: n.files()}
	}
	return bundle.Pod{ID: d.pod.ID, Files: d.files()}
}
