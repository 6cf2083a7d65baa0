//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

const (
	// freezePoll is how often it is looked whether all processes are frozen.
	freezePoll = 2 * time.Millisecond
	// suspendTimeout bounds Suspend where the host has no patience of its own.
	suspendTimeout = 30 * time.Second
)

// checkpoints is the Checkpoints service.
type checkpoints struct {
	mounts *mountTable
	tasks  *taskService
	// freezer is the control group of all containers.
	freezer string

	// turn is held by the one request that is under way: one whose host has given it
	// up goes on.
	turn chan struct{}
	// undo takes back what Suspend has done, last thing first. It is nil while the
	// machine is not suspended.
	undo []func() error
}

func newCheckpoints(mounts *mountTable, tasks *taskService, freezer string) *checkpoints {
	return &checkpoints{mounts: mounts, tasks: tasks, freezer: freezer, turn: make(chan struct{}, 1)}
}

// begin waits for the turn, which end gives back.
func (c *checkpoints) begin(ctx context.Context) (end func(), err error) {
	select {
	case c.turn <- struct{}{}:
		return func() { <-c.turn }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("checkpoint: another request is under way: %w", context.Cause(ctx))
	}
}

// Prepare implements agentv1.CheckpointsService.
func (c *checkpoints) Prepare(context.Context, *emptypb.Empty) (*emptypb.Empty, error) {
	c.mounts.mu.Lock()
	defer c.mounts.mu.Unlock()
	if len(c.mounts.mounts) > 0 && !c.mounts.relayed {
		return nil, fmt.Errorf("checkpoint: %d trees are mounted already: %w", len(c.mounts.mounts), errdefs.ErrFailedPrecondition)
	}
	c.mounts.relayed = true
	return &emptypb.Empty{}, nil
}

// Suspend implements agentv1.CheckpointsService. The order matters: what is frozen
// writes no more, what is written back makes no more requests.
func (c *checkpoints) Suspend(ctx context.Context, r *agentv1.SuspendRequest) (_ *agentv1.SuspendResponse, err error) {
	end, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if c.undo != nil {
		return nil, fmt.Errorf("checkpoint: the machine is suspended: %w", errdefs.ErrFailedPrecondition)
	}
	ctx, cancel := context.WithTimeout(ctx, suspendTimeout)
	defer cancel()
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("checkpoint: %w", err), c.goOn(0))
		}
	}()
	c.undo = append(c.undo, func() error { return c.freeze(context.WithoutCancel(ctx), false) })
	if err := c.freeze(ctx, true); err != nil {
		return nil, err
	}
	if err := c.holdMounts(ctx); err != nil {
		return nil, err
	}
	return c.holdStreams(ctx, r.Inputs)
}

// freeze freezes all containers, or undoes that (cgroup-v2.rst, cgroup.freeze).
func (c *checkpoints) freeze(ctx context.Context, frozen bool) error {
	value := map[bool]string{true: "1", false: "0"}[frozen]
	err := os.WriteFile(filepath.Join(c.freezer, "cgroup.freeze"), []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // Nothing has run yet.
	}
	if err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	tick := time.NewTicker(freezePoll)
	defer tick.Stop()
	for {
		events, err := os.ReadFile(filepath.Join(c.freezer, "cgroup.events"))
		if err != nil {
			return fmt.Errorf("freeze: %w", err)
		}
		if strings.Contains(string(events), "frozen "+value+"\n") {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("a process cannot be frozen: %w", context.Cause(ctx))
		}
	}
}

// holdMounts writes back all trees and keeps the kernel from asking for more.
func (c *checkpoints) holdMounts(ctx context.Context) error {
	c.mounts.mu.Lock()
	mounts := maps.Clone(c.mounts.mounts)
	c.mounts.mu.Unlock()
	for sh, is := range mounts {
		if is.relay == nil {
			return fmt.Errorf("the connection of %s is the kernel's: the machine was not prepared for it: %w", sh.target, errdefs.ErrFailedPrecondition)
		}
	}
	for sh := range mounts {
		if err := syncFS(sh.target); err != nil {
			return fmt.Errorf("write back %s: %w", sh.target, err)
		}
	}
	for sh, is := range mounts {
		if err := is.relay.hold(ctx); err != nil {
			return fmt.Errorf("files of %s: %w", sh.target, err)
		}
		c.undo = append(c.undo, func() error { is.relay.release(); return nil })
	}
	return nil
}

// holdStreams brings all input to where the processes take it, and keeps their
// output where it is.
func (c *checkpoints) holdStreams(ctx context.Context, sent []*agentv1.StreamPosition) (*agentv1.SuspendResponse, error) {
	inputs := map[string]int64{}
	for _, s := range sent {
		inputs[s.GetStream()] = s.GetBytes()
	}
	resp := &agentv1.SuspendResponse{}
	pumps := c.tasks.pumps()
	for _, id := range slices.Sorted(maps.Keys(pumps)) {
		switch p := pumps[id].(type) {
		case *inlet:
			if err := p.hold(ctx, inputs[id]); err != nil {
				return nil, fmt.Errorf("%s: %w", id, err)
			}
			c.undo = append(c.undo, func() error { p.release(); return nil })
		case *outlet:
			if err := p.hold(ctx); err != nil {
				return nil, fmt.Errorf("%s: %w", id, err)
			}
			c.undo = append(c.undo, func() error { p.release(); return nil })
			resp.Outputs = append(resp.Outputs, &agentv1.StreamPosition{Stream: id, Bytes: p.count()})
		}
	}
	return resp, nil
}

// Attach implements agentv1.CheckpointsService.
func (c *checkpoints) Attach(ctx context.Context, r *agentv1.AttachRequest) (_ *emptypb.Empty, err error) {
	end, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if c.undo == nil {
		return nil, fmt.Errorf("attach: the machine is not suspended: %w", errdefs.ErrFailedPrecondition)
	}
	conns := map[string]stream{}
	defer func() {
		for _, conn := range conns {
			conn.Close() // That nothing has taken.
		}
	}()
	for _, id := range r.Streams {
		from := c.tasks.stdio
		if c.mounts.has(id) {
			from = c.mounts.streams
		}
		conn, err := from.claim(id)
		if err != nil {
			return nil, fmt.Errorf("attach: %w", err)
		}
		conns[id] = conn
	}
	if err := c.mounts.attach(conns); err != nil {
		return nil, err
	}
	for id, p := range c.tasks.pumps() {
		if conn, ok := conns[id]; ok {
			p.attach(conn)
			delete(conns, id)
		} else {
			p.attach(nil)
		}
	}
	// All but the first thing, the freezing.
	if err := c.goOn(1); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	return &emptypb.Empty{}, nil
}

// Resume implements agentv1.CheckpointsService.
func (c *checkpoints) Resume(ctx context.Context, _ *emptypb.Empty) (*emptypb.Empty, error) {
	end, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if err := c.goOn(0); err != nil {
		return nil, fmt.Errorf("resume: %w", err)
	}
	return &emptypb.Empty{}, nil
}

// goOn undoes all that Suspend has done but for the first few things.
func (c *checkpoints) goOn(but int) error {
	var errs []error
	for len(c.undo) > but {
		last := len(c.undo) - 1
		errs = append(errs, c.undo[last]())
		c.undo = c.undo[:last]
	}
	if but == 0 {
		c.undo = nil
	}
	return errors.Join(errs...)
}

// pumps are those of all processes, by the ids of their streams.
func (s *taskService) pumps() map[string]pump {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]pump{}
	for _, p := range s.procs {
		p.io.mu.Lock()
		maps.Copy(all, p.io.pumps)
		p.io.mu.Unlock()
	}
	return all
}

// has says whether a mounted tree's stream has this id.
func (m *mountTable) has(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, is := range m.mounts {
		if is.stream == id {
			return true
		}
	}
	return false
}

// attach gives each mounted tree its new connection, and takes those out of conns.
// Nothing is done where one has none: FailedPrecondition.
func (m *mountTable) attach(conns map[string]stream) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for sh, is := range m.mounts {
		if conns[is.stream] == nil {
			return fmt.Errorf("attach: nothing for %s (%q): %w", sh.target, is.stream, errdefs.ErrFailedPrecondition)
		}
	}
	for _, is := range m.mounts {
		is.relay.attach(conns[is.stream])
		delete(conns, is.stream)
	}
	return nil
}
