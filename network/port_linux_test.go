package network

import (
	"fmt"
	"os"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// TestPortOfAMachine is a sandbox whose tap was its machine's before, open and in
// another namespace.
func TestPortOfAMachine(t *testing.T) {
	r := newRig(t, policy.Policy{Allow: []policy.Rule{rule("tcp", []string{"80"}, friend)}})
	r.serve(r.world, 80)
	r.serve(r.world, 81)
	machine, g := r.place().ns, &guest{}
	err := netns.Do(machine, func() (err error) { g.wire, err = openTap("port"); return err })
	if err != nil {
		t.Fatal(err)
	}
	request := Request{ID: "claimed", Port: &Port{NetNS: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), machine.Fd()), Tap: "port"}}
	r.in(func() error {
		// Nothing is left of one that is not there.
		none := *request.Port
		none.Tap = "none"
		if _, err := r.net.Add(t.Context(), Request{ID: "none", Port: &none}); !errdefs.IsNotFound(err) {
			t.Errorf("a port that is not there: %v", err)
		}
		for range 2 {
			var err error
			if g.Result, err = r.net.Add(t.Context(), request); err != nil {
				return err
			}
		}
		return r.net.Check(t.Context(), request.ID)
	})
	r.start(g)
	r.passes(g.place, "tcp", friend+":80")
	r.denied(request.ID, g.place, "tcp", friend+":81")

	// Its machine ends first, as when that is killed.
	g.wire.Close()
	r.del(request.ID)
	if left := r.left(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
