package sandbox

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// onceFile is a resource that can be given back once.
type onceFile struct {
	Path string `json:"path"`
}

func init() {
	receipt.Register(onceFile{}.Kind(), func() receipt.Resource { return new(onceFile) })
}

func (onceFile) Kind() string                 { return "file, once" }
func (f onceFile) Undo(context.Context) error { return os.Remove(f.Path) }

// household is a home with two bundles and a machine's receipt in its book.
type household struct {
	t        *testing.T
	stateDir string
	home     *home
	bundles  map[string]string // by id
	held     string
}

func newHousehold(t *testing.T) *household {
	t.Helper()
	top := t.TempDir()
	x := &household{t: t, stateDir: filepath.Join(top, "state"), held: filepath.Join(top, "held"), bundles: map[string]string{}}
	must(t, os.WriteFile(x.held, nil, 0o600))
	for _, id := range []string{"c1", "c2"} {
		x.bundles[id] = filepath.Join(top, "bundles", id)
		must(t, os.MkdirAll(x.bundles[id], 0o700))
	}
	x.open()
	for id, dir := range x.bundles {
		must(t, x.home.join(id, dir))
	}
	_, err := x.home.book.Write(onceFile{Path: x.held})
	must(t, err)
	return x
}

func (x *household) open() {
	x.t.Helper()
	h, err := openHome(context.Background(), x.stateDir, "pod", x.bundles["c1"])
	must(x.t, err)
	x.home = h
	x.t.Cleanup(func() { h.lock.Close() })
}

// kill is the end of the shim: the kernel gives up its locks.
func (x *household) kill() { x.home.lock.Close() }

func (x *household) cleanUp(id string) {
	x.t.Helper()
	must(x.t, CleanUp(context.Background(), id, x.bundles[id]))
}

// removeBundle is what containerd does after `delete`.
func (x *household) removeBundle(id string) { must(x.t, os.RemoveAll(x.bundles[id])) }

func (x *household) holds() bool {
	_, err := os.Stat(x.held)
	return err == nil
}

func (x *household) wantGone() {
	x.t.Helper()
	if x.holds() {
		x.t.Error("the machine's resource is still held")
	}
	if _, err := os.Stat(x.stateDir); !os.IsNotExist(err) {
		x.t.Errorf("the state directory is still there: %v", err)
	}
}

func TestDeleteAfterAShimWasKilled(t *testing.T) {
	for name, run := range map[string]func(*household){
		"the first bundle first": func(x *household) { x.cleanUp("c1"); x.removeBundle("c1"); x.cleanUp("c2") },
		"the last bundle first":  func(x *household) { x.cleanUp("c2"); x.removeBundle("c2"); x.cleanUp("c1") },
		"the first bundle was deleted before": func(x *household) {
			x.removeBundle("c1")
			x.cleanUp("c2")
		},
		"twice": func(x *household) { x.cleanUp("c1"); x.cleanUp("c1"); x.cleanUp("c2") },
		"all at once": func(x *household) {
			var wg sync.WaitGroup
			for range 4 {
				for id := range x.bundles {
					wg.Go(func() {
						if err := CleanUp(context.Background(), id, x.bundles[id]); err != nil {
							x.t.Error(err)
						}
					})
				}
			}
			wg.Wait()
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newHousehold(t)
			x.kill()
			run(x)
			x.wantGone()
		})
	}
}

// containerd runs `delete` for each container that it has deleted, too.
func TestDeleteWhileTheShimServesOthers(t *testing.T) {
	x := newHousehold(t)
	x.cleanUp("c1")
	x.removeBundle("c1")
	if !x.holds() {
		t.Fatal("the machine was taken from under c2")
	}
	// The last one finds the shim on its way out.
	done := make(chan error, 1)
	go func() { done <- CleanUp(context.Background(), "c2", x.bundles["c2"]) }()
	must(t, x.home.close(context.Background()))
	must(t, <-done)
	x.wantGone()
}

// A shim that stays although its last container is gone loses its machine.
func TestDeleteOfTheLastBundleOfAStuckShim(t *testing.T) {
	x := newHousehold(t)
	x.cleanUp("c1")
	x.cleanUp("c2")
	x.wantGone()
}

func TestAHomeThatAnotherShimHasLeft(t *testing.T) {
	x := newHousehold(t)
	if _, err := openHome(context.Background(), x.stateDir, "pod", x.bundles["c1"]); !errdefs.IsUnavailable(err) {
		t.Errorf("moved in with a shim that lives: %v", err)
	}
	x.kill()
	x.open()
	if x.holds() {
		t.Error("what the dead shim held is still held")
	}
	must(t, x.home.close(context.Background()))
	x.wantGone()
}

func TestDeleteOfABundleWithoutAMachine(t *testing.T) {
	must(t, CleanUp(context.Background(), "c1", t.TempDir()))
}
