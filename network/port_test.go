package network

import (
	"testing"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// TestPortOfAMachine is a sandbox whose tap was its machine's before, and open.
func TestPortOfAMachine(t *testing.T) {
	r := newRig(t, policy.Policy{Allow: []policy.Rule{rule("tcp", []string{"80"}, friend)}})
	r.serve(r.world, 80)
	r.serve(r.world, 81)
	g := &guest{}
	request := Request{ID: "claimed", Port: r.port(g)}
	r.in(func() error {
		// Nothing is left of one that is not there.
		none := *request.Port
		none.Tap = "tap32000"
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
