package network

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// churn adds, changes and deletes networks of a few ids at random, for ever.
func churn(cfg Config) {
	ctx := context.Background()
	n, err := Open(cfg)
	if err != nil {
		panic(err)
	}
	fmt.Println("at work")
	for {
		id := fmt.Sprint("churn", rand.IntN(20))
		// Errors are of no matter: others work on the same ids.
		_, _ = n.Add(ctx, Request{ID: id})
		_ = n.SetPolicy(ctx, id, policy.Policy{Deny: []policy.Rule{{Peers: []string{foe}}}, Bandwidth: 1 << 20})
		_ = n.Check(ctx, id)
		_, _ = n.Del(ctx, id)
	}
}

// Processes that are killed at any point leave nothing that the next Del or GC
// does not find, and never an address that two have.
func TestKilledAtRandom(t *testing.T) {
	r := newRig(t, policy.Policy{Allow: []policy.Rule{rule("tcp", nil, "0.0.0.0/0")}})
	cfg, err := json.Marshal(r.net.cfg)
	if err != nil {
		t.Fatal(err)
	}
	const atOnce = 5
	processes := 100 / slowness
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for range processes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = []string{helperEnv + "=" + string(cfg)}
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = r.try(cmd.Start)
			}
			if err != nil {
				t.Error(err)
				return
			}
			// From when it has begun, for a time in which it does a few things.
			out.Read(make([]byte, 1))
			<-time.After(time.Duration(rand.IntN(60_000)) * time.Microsecond)
			cmd.Process.Kill()
			cmd.Wait()
		})
	}
	wg.Wait()
	owners, err := r.net.store.owners()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d addresses and %d things were left by the killed", len(owners), len(r.left()))
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	r.in(func() error { _, err := r.net.GC(ctx, func(string) bool { return false }); return err })
	if left := r.left(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// Fifty callers at a time, each for a sandbox of its own and for one that all
// share: addresses are unique, what is there is whole, and everything goes.
func TestParallel(t *testing.T) {
	r := newRig(t, policy.Policy{})
	callers := 50 / slowness
	results := make([]*Result, 2*callers)
	parallel := func(f func(i int) error) {
		t.Helper()
		var wg sync.WaitGroup
		for i := range 2 * callers {
			wg.Go(func() {
				if err := r.try(func() error { return f(i) }); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	id := func(i int) string {
		if i%2 == 1 {
			return "shared"
		}
		return fmt.Sprint("own", i)
	}
	parallel(func(i int) (err error) {
		results[i], err = r.net.Add(t.Context(), Request{ID: id(i)})
		return err
	})
	if t.Failed() {
		return
	}
	owner := map[string]string{}
	for i, result := range results {
		addr := result.Address.String()
		if o, taken := owner[addr]; taken && o != id(i) {
			t.Errorf("%s belongs to %s and %s", addr, o, id(i))
		}
		owner[addr] = id(i)
	}
	if len(owner) != callers+1 {
		t.Errorf("%d addresses, want %d", len(owner), callers+1)
	}
	parallel(func(i int) error { return r.net.Check(t.Context(), id(i)) })
	parallel(func(i int) error { _, err := r.net.Del(t.Context(), id(i)); return err })
	if left := r.left(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// What Check finds, Add mends.
func TestCheckAndRepair(t *testing.T) {
	r := newRig(t, policy.Policy{})
	a := r.add("a", nil)
	r.add("b", nil)
	for name, damage := range damages(a.Tap) {
		r.in(damage)
		r.in(func() error {
			if err := r.net.Check(t.Context(), "a"); err == nil {
				t.Errorf("%s: not found", name)
			}
			for _, id := range []string{"a", "b"} {
				if _, err := r.net.Add(t.Context(), Request{ID: id}); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if err := r.net.Check(t.Context(), id); err != nil {
					t.Errorf("%s: after Add: %v", name, err)
				}
			}
			return nil
		})
	}
	r.in(func() error {
		removed, err := r.net.GC(t.Context(), nil)
		if err != nil || len(removed) > 0 {
			t.Errorf("GC removed %q of what has records (%v)", removed, err)
		}
		// What has no record goes.
		tap := r.net.host.tap(fromNumber(number(a.Address)^1), nil)
		if err := r.strayTap(tap); err != nil {
			return err
		}
		if removed, err = r.net.GC(t.Context(), nil); !slices.Equal(removed, []string{"tap " + tap}) {
			t.Errorf("GC removed %q, %v", removed, err)
		}
		return err
	})
}

func TestAddressesRunOut(t *testing.T) {
	r := newRig(t, policy.Policy{})
	r.net.cfg.Last = r.net.cfg.First.Next()
	for i := range 2 {
		r.add(fmt.Sprint(i), nil)
	}
	r.in(func() error {
		if _, err := r.net.Add(t.Context(), Request{ID: "x"}); err == nil || !strings.Contains(err.Error(), "taken") {
			t.Errorf("a third of two addresses: %v", err)
		}
		if _, err := r.net.store.load("x"); err == nil {
			t.Error("it has a record")
		}
		return nil
	})
	r.del("0")
	r.add("x", nil)
}
