//go:build linux

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

// bundles is the Bundle service: it makes the directories that tasks run from.
type bundles struct {
	mounter
	// provide makes what a config.json names of what the machine's containers
	// share. It and dir are the real ones but in tests.
	provide func(config []byte) error
	dir     func(id string) string

	mu   sync.Mutex
	byID map[string]*bundle
}

type bundle struct {
	state  bundleState
	mounts []unmounter
}

type bundleState int

const (
	bundleBusy  bundleState = iota // being made or removed
	bundleReady                    // may be used, or removed
	bundleInUse                    // a task runs from it
)

func newBundles(shares *streams, mounts *mountTable, provide func(config []byte) error) *bundles {
	return &bundles{
		mounter: mounter{shares: shares, mount: mounts.mount},
		provide: provide,
		dir:     agentproto.BundleDir,
		byID:    map[string]*bundle{},
	}
}

// Create implements agentv1.BundleService.
func (b *bundles) Create(ctx context.Context, r *agentv1.CreateBundleRequest) (*emptypb.Empty, error) {
	if err := validateBundle(r); err != nil {
		return nil, err
	}
	config, err := runtimeConfig(r.Config)
	if err != nil {
		return nil, fmt.Errorf("bundle %s: %w", r.Id, err)
	}
	bun := &bundle{}
	b.mu.Lock()
	_, taken := b.byID[r.Id]
	if !taken {
		b.byID[r.Id] = bun
	}
	b.mu.Unlock()
	if taken {
		return nil, fmt.Errorf("bundle %s: %w", r.Id, errdefs.ErrAlreadyExists)
	}

	if err := b.build(ctx, bun, r, config); err != nil {
		// What could not be undone stays on the books, for Delete to try again.
		if undoErr := b.tearDown(context.WithoutCancel(ctx), bun, r.Id); undoErr != nil {
			b.setState(r.Id, bundleReady)
			return nil, errors.Join(fmt.Errorf("bundle %s: %w", r.Id, err), undoErr)
		}
		b.forget(r.Id)
		return nil, fmt.Errorf("bundle %s: %w", r.Id, err)
	}
	b.setState(r.Id, bundleReady)
	return &emptypb.Empty{}, nil
}

func (b *bundles) build(ctx context.Context, bun *bundle, r *agentv1.CreateBundleRequest, config []byte) error {
	if err := b.provide(config); err != nil {
		return err
	}
	dir := b.dir(r.Id)
	// Searchable by all, since a container's root may be another user's.
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	for _, s := range r.Shares {
		m, err := b.mountAt(ctx, filepath.Join(dir, s.Target), s)
		if err != nil {
			return fmt.Errorf("share %s: %w", s.Target, err)
		}
		bun.mounts = append(bun.mounts, m)
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600)
}

// tearDown is legal on whatever build has left.
func (b *bundles) tearDown(ctx context.Context, bun *bundle, id string) error {
	for len(bun.mounts) > 0 {
		last := len(bun.mounts) - 1
		if err := bun.mounts[last].Unmount(ctx); err != nil {
			return fmt.Errorf("bundle %s: %w", id, err)
		}
		bun.mounts = bun.mounts[:last]
	}
	if err := os.RemoveAll(b.dir(id)); err != nil {
		return fmt.Errorf("bundle %s: %w", id, err)
	}
	return nil
}

// Delete implements agentv1.BundleService.
func (b *bundles) Delete(ctx context.Context, r *agentv1.DeleteBundleRequest) (*emptypb.Empty, error) {
	if err := identifiers.Validate(r.Id); err != nil {
		return nil, err
	}
	b.mu.Lock()
	bun, ok := b.byID[r.Id]
	var err error
	switch {
	case !ok:
	case bun.state == bundleInUse:
		err = fmt.Errorf("bundle %s: a task runs from it: %w", r.Id, errdefs.ErrFailedPrecondition)
	case bun.state == bundleBusy:
		err = fmt.Errorf("bundle %s: another request is at work on it: %w", r.Id, errdefs.ErrUnavailable)
	default:
		bun.state = bundleBusy
	}
	b.mu.Unlock()
	if !ok || err != nil {
		return &emptypb.Empty{}, err
	}
	if err := b.tearDown(ctx, bun, r.Id); err != nil {
		b.setState(r.Id, bundleReady)
		return nil, err
	}
	b.forget(r.Id)
	return &emptypb.Empty{}, nil
}

// WriteBack implements agentv1.SharesService.
func (b *bundles) WriteBack(_ context.Context, r *agentv1.WriteBackRequest) (*emptypb.Empty, error) {
	b.mu.Lock()
	bun, ok := b.byID[r.Id]
	var mounts []unmounter
	// Those of a bundle that is being made or removed are another request's.
	if ok && bun.state != bundleBusy {
		mounts = slices.Clone(bun.mounts)
	}
	b.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("bundle %q: %w", r.Id, errdefs.ErrNotFound)
	}
	var errs []error
	for _, m := range mounts {
		errs = append(errs, m.WriteBack())
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("bundle %s: %w", r.Id, err)
	}
	return &emptypb.Empty{}, nil
}

// use marks a bundle as one that a task runs from. NotFound if there is no such
// bundle, AlreadyExists if a task runs from it already.
func (b *bundles) use(id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	bun, ok := b.byID[id]
	switch {
	case !ok || bun.state == bundleBusy:
		return fmt.Errorf("bundle %s: %w", id, errdefs.ErrNotFound)
	case bun.state == bundleInUse:
		return fmt.Errorf("task %s: %w", id, errdefs.ErrAlreadyExists)
	}
	bun.state = bundleInUse
	return nil
}

// unuse is the undo of use.
func (b *bundles) unuse(id string) { b.setState(id, bundleReady) }

func (b *bundles) setState(id string, state bundleState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if bun, ok := b.byID[id]; ok {
		bun.state = state
	}
}

func (b *bundles) forget(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.byID, id)
}

// runtimeOCIVersion is the version of the OCI runtime specification that the
// guest image's runtime is told. Debian's crun takes 1.0 and 1.1 only, whereas
// containerd writes the latest; versions differ by additions, and a runtime
// ignores those that it does not know.
const runtimeOCIVersion = "1.0.2"

// runtimeConfig makes a config.json of any version 1 one for the guest image's
// runtime.
func runtimeConfig(config []byte) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, fmt.Errorf("config.json: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	var version string
	if err := json.Unmarshal(fields["ociVersion"], &version); err != nil || !strings.HasPrefix(version, "1.") {
		return nil, fmt.Errorf("config.json: ociVersion %s: want 1.x: %w", fields["ociVersion"], errdefs.ErrInvalidArgument)
	}
	fields["ociVersion"] = json.RawMessage(strconv.Quote(runtimeOCIVersion))
	return json.Marshal(fields)
}

func validateBundle(r *agentv1.CreateBundleRequest) error {
	if err := identifiers.Validate(r.Id); err != nil {
		return err
	}
	var targets []string
	for _, s := range r.Shares {
		if s.GetTarget() != agentproto.RootfsTarget {
			return fmt.Errorf("bundle %s: share target %q: want %q: %w", r.Id, s.GetTarget(), agentproto.RootfsTarget, errdefs.ErrInvalidArgument)
		}
		if slices.Contains(targets, s.Target) {
			return fmt.Errorf("bundle %s: two shares for %q: %w", r.Id, s.Target, errdefs.ErrInvalidArgument)
		}
		if _, known := agentv1.Cache_name[int32(s.Cache)]; !known {
			return fmt.Errorf("bundle %s: share %s: cache mode %d: %w", r.Id, s.Target, s.Cache, errdefs.ErrInvalidArgument)
		}
		targets = append(targets, s.Target)
	}
	return nil
}
