package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

func (s *system) dnctl(args []string, stdin string) ([]byte, error) {
	number := func(text string) (n int) { fmt.Sscan(text, &n); return n }
	if len(args) == 2 && s.pipes == nil {
		return nil, errors.New("exit status 71: Line 1: setsockopt(IP_DUMMYNET3): Protocol not available")
	}
	var out strings.Builder
	for line := range strings.Lines(stdin) {
		var n int
		var rate uint64
		if _, err := fmt.Sscanf(line, "pipe %d config bw %dByte/s", &n, &rate); err != nil {
			return nil, err
		}
		s.pipes[n] = rate
	}
	for _, text := range args[2:] {
		n := number(text)
		rate, there := s.pipes[n]
		switch {
		case args[1] == "list" && there:
			fmt.Fprintf(&out, "%05d: %7.3f Mbit/s    0 ms burst 0\n", n, float64(rate*8)/1e6)
		case args[1] == "delete" && !there:
			return nil, errors.New("exit status 1: dnctl: rule 1: setsockopt(IP_DUMMYNET3): Invalid argument")
		case args[1] == "delete":
			delete(s.pipes, n)
		}
	}
	return []byte(out.String()), nil
}

// shapedBy are the pipes that frames go through.
func (s *system) shapedBy() (all []int) {
	for line := range strings.Lines(s.anchors["cube/cubenet0"]) {
		var n int
		if _, text, ok := strings.Cut(line, " dnpipe "); ok {
			fmt.Sscan(text, &n)
			all = append(all, n)
		}
	}
	return all
}

// A bandwidth is changed, lifted and set again while the sandbox runs, and goes with
// it.
func TestFreeBSDBandwidth(t *testing.T) {
	s := newSystem()
	n := freebsdNetwork(t, s)
	ctx := t.Context()
	if _, err := n.Add(ctx, Request{ID: "a", Policy: &policy.Policy{Bandwidth: 1 << 20}}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Add(ctx, Request{ID: "free"}); err != nil {
		t.Fatal(err)
	}
	for _, rate := range []uint64{1 << 20, 1 << 21, 0, 1 << 22} {
		if err := n.SetPolicy(ctx, "a", policy.Policy{Bandwidth: rate}); err != nil {
			t.Fatal(err)
		}
		var want []uint64
		if rate > 0 {
			want = []uint64{rate, rate}
		}
		if got := slices.Collect(maps.Values(s.pipes)); !slices.Equal(got, want) {
			t.Errorf("%d: pipes of %d bytes a second", rate, got)
		}
		if by := s.shapedBy(); !slices.Equal(by, slices.Sorted(maps.Keys(s.pipes))) {
			t.Errorf("%d: frames go through pipes %d, there are %v", rate, by, s.pipes)
		}
		if err := n.Check(ctx, "a"); err != nil {
			t.Errorf("%d: %v", rate, err)
		}
	}
	for what, damage := range map[string]func(){
		"a pipe is gone":     func() { delete(s.pipes, s.shapedBy()[1]) },
		"a pipe is another":  func() { s.pipes[s.shapedBy()[0]] *= 2 },
		"the lines are gone": func() { s.anchors["cube/cubenet0"] = strings.ReplaceAll(s.anchors["cube/cubenet0"], "dnpipe", "tag") },
	} {
		damage()
		if err := n.Check(ctx, "a"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := n.Add(ctx, Request{ID: "a"}); err != nil {
			t.Fatal(err)
		}
		if err := n.Check(ctx, "a"); err != nil {
			t.Errorf("%s, and was mended: %v", what, err)
		}
	}
	if _, err := n.Del(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if links, err := os.ReadDir(n.store.pipes()); len(s.pipes) > 0 || len(s.shapedBy()) > 0 || len(links) > 0 || err != nil {
		t.Errorf("left: pipes %v, lines to %d, claims %v, %v", s.pipes, s.shapedBy(), links, err)
	}
}

// Others' pipes are left alone, and another network's.
func TestFreeBSDForeignPipes(t *testing.T) {
	s := newSystem()
	n := freebsdNetwork(t, s)
	ctx := t.Context()
	a, err := n.Add(ctx, Request{ID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	own := firstPipe + 2*int(number(a.Address)-number(n.cfg.First))
	s.pipes[own+1] = 7
	cfg := n.cfg
	cfg.Bridge = "cubenet1"
	other := freebsdNetworkOf(cfg, s).host.(*freebsd)
	theirs, err := other.takePipe(ctx, &record{Result: Result{ID: "a", Address: a.Address}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.SetPolicy(ctx, "a", policy.Policy{Bandwidth: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if by := s.shapedBy(); s.pipes[own+1] != 7 || len(s.pipes) != 3 || slices.Contains(by, own) || slices.Contains(by, int(theirs)) {
		t.Errorf("pipes %v, frames go through %d", s.pipes, by)
	}
	if _, err := n.Del(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Readlink(other.store.pipe(theirs)); err != nil || len(s.pipes) != 1 {
		t.Errorf("pipes %v, another network's claim: %v", s.pipes, err)
	}
}

// What cannot be had is refused, and what was there stays.
func TestFreeBSDBandwidthIsRefused(t *testing.T) {
	s := newSystem()
	n := freebsdNetwork(t, s)
	ctx := t.Context()
	if _, err := n.Add(ctx, Request{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	loaded := s.pipes
	s.pipes = nil
	wide := policy.Policy{Bandwidth: 1 << 40}
	if err := n.SetPolicy(ctx, "a", policy.Policy{Bandwidth: 1 << 20}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "kldload dummynet") {
		t.Errorf("without dummynet: %v, want what to do", err)
	}
	if err := n.SetPolicy(ctx, "a", wide); !errdefs.IsNotImplemented(err) {
		t.Errorf("too much: %v", err)
	}
	if _, err := n.Add(ctx, Request{ID: "b", Policy: &wide}); !errdefs.IsNotImplemented(err) {
		t.Errorf("too much: %v", err)
	}
	if _, err := n.Show(ctx, "b"); !errdefs.IsNotFound(err) {
		t.Errorf("left of the refused one: %v", err)
	}
	s.pipes = loaded
	// One that fails later, for a port that is another's.
	taken := policy.Policy{Publish: []policy.Port{{Host: 8080, Guest: 80}}}
	if _, err := n.Add(ctx, Request{ID: "c", Policy: &taken}); err != nil {
		t.Fatal(err)
	}
	for _, was := range []uint64{0, 1 << 21} {
		if err := n.SetPolicy(ctx, "a", policy.Policy{Bandwidth: was}); err != nil {
			t.Fatal(err)
		}
		for _, rate := range []uint64{0, 1 << 20} {
			if err := n.SetPolicy(ctx, "a", policy.Policy{Bandwidth: rate, Publish: taken.Publish}); !errdefs.IsAlreadyExists(err) {
				t.Errorf("another's port: %v", err)
			}
			if err := n.Check(ctx, "a"); err != nil {
				t.Errorf("a change from %d to %d that was refused: %v", was, rate, err)
			}
		}
	}
}

// A claim without a record is of one that was killed: GC removes it with its pipes.
func TestFreeBSDForgottenPipes(t *testing.T) {
	s := newSystem()
	n := freebsdNetwork(t, s)
	ctx := context.Background()
	if _, err := n.Add(ctx, Request{ID: "a", Policy: &policy.Policy{Bandwidth: 1 << 20}}); err != nil {
		t.Fatal(err)
	}
	h := n.host.(*freebsd)
	gone := &record{Result: Result{ID: "gone", Address: n.cfg.Last}}
	p, err := h.takePipe(ctx, gone)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.pf.SetPipe(ctx, p, 1); err != nil {
		t.Fatal(err)
	}
	if again, err := h.takePipe(ctx, gone); err != nil || again != p {
		t.Errorf("the same one takes %d, %v, want %d", again, err, p)
	}
	removed, err := n.GC(ctx, nil)
	if err != nil || !slices.Equal(removed, []string{fmt.Sprintf("pipes %d and %d", p, p+1)}) || len(s.pipes) != 2 {
		t.Errorf("GC removed %q, %v; there are %v", removed, err, s.pipes)
	}
	if err := n.Check(ctx, "a"); err != nil {
		t.Error(err)
	}
}
