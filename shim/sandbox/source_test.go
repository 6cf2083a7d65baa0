package sandbox

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/guest"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/bundle"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/sizing"
)

// Without a daemon, or with something else in its place, a machine is booted
// unless the pool is required.
func TestWithoutAPool(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, socket := range []string{filepath.Join(dir, "none"), file} {
		for mode, boots := range map[config.PoolMode]bool{config.PoolAuto: true, config.PoolNever: true, config.PoolRequire: false} {
			b := &fakeBackend{t: t}
			book, err := receipt.Open(filepath.Join(t.TempDir(), "receipts"))
			if err != nil {
				t.Fatal(err)
			}
			r := machineRequest{config: config.Config{Pool: config.Pool{Mode: mode, Socket: socket}}}
			m, _, from, err := poolOrBoot(b)(t.Context(), r, &guest.Image{}, hypervisor.Config{ID: "m"}, book)
			switch {
			case boots && (err != nil || from.tier != poolv1.Tier_TIER_BOOT || len(b.launched()) != 1):
				t.Errorf("%s: from %v, %d launches, %v", mode, from.tier, len(b.launched()), err)
			case !boots && (!errdefs.IsUnavailable(err) || len(b.launched()) != 0):
				t.Errorf("%s: %d launches, %v; want unavailable", mode, len(b.launched()), err)
			}
			for _, launched := range b.launched() {
				launched.agent.stop()
			}
			if m != nil {
				must(t, m.Destroy(t.Context()))
			}
		}
	}
}

func TestPoolByAnnotation(t *testing.T) {
	b := newBed(t)
	sized := func(r sizing.Request, cfg config.Config) (config.Config, error) { return b.sized(b.within(), r, cfg) }
	for value, want := range map[string]config.PoolMode{"require": config.PoolRequire, "never": config.PoolNever} {
		cfg, err := sized(sizing.Request{Annotations: map[string]string{bundle.AnnotationPool: value}}, config.Default())
		if err != nil || cfg.Pool.Mode != want {
			t.Errorf("%s: %s, %v", value, cfg.Pool.Mode, err)
		}
	}
	request := sizing.Request{Annotations: map[string]string{bundle.AnnotationPool: "maybe"}}
	if _, err := sized(request, config.Default()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a mode that is none: %v", err)
	}
	closed := config.Default()
	closed.Machine.Annotations = nil
	request.Annotations[bundle.AnnotationPool] = "never"
	if _, err := sized(request, closed); !errdefs.IsPermissionDenied(err) {
		t.Errorf("an annotation that is not enabled: %v", err)
	}
}

// Which policy is the tenant's to choose only where the administrator says so.
func TestPolicyByAnnotation(t *testing.T) {
	b := newBed(t)
	request := sizing.Request{Annotations: map[string]string{bundle.AnnotationNetworkPolicy: "web"}}
	if _, err := b.sized(b.within(), request, config.Default()); !errdefs.IsPermissionDenied(err) {
		t.Errorf("it is enabled by default: %v", err)
	}
	open := config.Default()
	open.Machine.Annotations = []string{"network-policy"}
	if cfg, err := b.sized(b.within(), request, open); err != nil || cfg.Network.Policy != "web" {
		t.Errorf("got policy %q, %v", cfg.Network.Policy, err)
	}
}
