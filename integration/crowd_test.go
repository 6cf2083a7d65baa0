//go:build linux || freebsd

package integration

import (
	"flag"
	"sync"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

var (
	// An emulated host of emulated machines has not the time for so many.
	crowdSize = flag.Int("crowd", 20, "sandboxes at once")
	cycles    = flag.Int("cycles", cyclesByDefault, "sandboxes one after the other")
)

// crowdTimeout bounds the start of a crowd on few processors.
var crowdTimeout = lab.Patience(5 * time.Minute)

// clockError is how much faster than the host's a guest's clock may have gone
// since its boot. The first seconds are told by a clock that is measured badly
// on a busy host.
const clockError = 1.5

func testCrowd(r *rig) {
	crowd := *crowdSize
	ids := make([]string, crowd)
	results := make([]lab.Result, crowd)
	errs := make([]error, crowd)
	var wg sync.WaitGroup
	for i := range ids {
		ids[i] = r.newID()
		r.Cleanup(func() { r.removeContainer(ids[i]) })
		wg.Go(func() {
			cmd := r.Command(r.ctx, "run", "--detach", "--null-io", "--runtime", r.runtime, lab.Image, ids[i], "/bin/probe", "signals")
			results[i], errs[i] = r.Complete(cmd)
		})
	}
	started := make(chan struct{})
	go func() { wg.Wait(); close(started) }()
	began := time.Now()
	select {
	case <-started:
		r.Logf("%d sandboxes started in %v", crowd, time.Since(began).Round(time.Second))
	case <-time.After(crowdTimeout):
		r.Fatalf("not all of %d sandboxes started within %v", crowd, crowdTimeout)
	}
	seen := map[string]string{}
	fastest := 0.0
	for i, id := range ids {
		if errs[i] != nil || results[i].Code != 0 {
			r.Errorf("%v\n%s", errs[i], results[i])
			continue
		}
		boot := r.parseBoot(r.exec(id, nil, nil, nil, "/bin/probe", "boot").Stdout)
		if other, dup := seen[boot.BootID]; dup {
			r.Errorf("%s and %s share a kernel", id, other)
		}
		seen[boot.BootID] = id
		// A kernel that was starved while it measured its clock may tell the time
		// too fast, and let every timeout pass early.
		up, since := boot.UptimeSeconds, time.Since(began).Seconds()
		fastest = max(fastest, up/since)
		if up > clockError*since {
			r.Errorf("%s says that it has been up for %.0f s, of %.0f s since it was asked for", id, up, since)
		}
	}
	if len(seen) != crowd {
		r.Errorf("%d of %d answered", len(seen), crowd)
	}
	r.Logf("the oldest guest says that it is %.0f%% of the time old", 100*fastest)
}

// testCycles makes and deletes sandboxes, and looks after each for what stays.
func testCycles(r *rig) {
	seen := map[string]bool{}
	for i := range *cycles {
		boot := r.parseBoot(r.mustRun(nil, "/bin/probe", "boot").Stdout)
		if seen[boot.BootID] {
			r.Errorf("cycle %d is a machine that there has been before", i)
		}
		seen[boot.BootID] = true
		if err := r.Leaks(r.ctx); err != nil {
			r.Fatalf("cycle %d: %v", i, err)
		}
	}
}
