package thaw

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

// fakeGuest has a clock and a link that takes its time, each way.
type fakeGuest struct {
	// ahead is the clock's error.
	ahead       time.Duration
	there, back []time.Duration
	calls       int
	asked       *agentv1.ThawRequest
	forge       func(*agentv1.ThawResponse)
	err         error
}

func (g *fakeGuest) way(list []time.Duration) { time.Sleep(list[min(g.calls, len(list)-1)]) }

func (g *fakeGuest) Thaw(_ context.Context, r *agentv1.ThawRequest) (*agentv1.ThawResponse, error) {
	g.way(g.there)
	g.asked = r
	g.ahead = time.Until(r.Now.AsTime())
	// Work, which is no error of the clock's.
	time.Sleep(40 * time.Millisecond)
	resp := &agentv1.ThawResponse{
		Nonce: r.Nonce, BootId: "boot", MachineId: r.MachineId, Hostname: r.Hostname,
		Uptime: durationpb.New(time.Second), Clock: timestamppb.New(time.Now().Add(g.ahead)),
	}
	if g.forge != nil {
		g.forge(resp)
	}
	g.way(g.back)
	g.calls++
	return resp, g.err
}

func (g *fakeGuest) Clock(_ context.Context, r *agentv1.ClockRequest) (*agentv1.ClockResponse, error) {
	g.way(g.there)
	g.ahead += r.Step.AsDuration()
	resp := &agentv1.ClockResponse{Clock: timestamppb.New(time.Now().Add(g.ahead))}
	g.way(g.back)
	g.calls++
	return resp, nil
}

func ms(n ...int) (d []time.Duration) {
	for _, n := range n {
		d = append(d, time.Duration(n)*time.Millisecond)
	}
	return d
}

func TestClock(t *testing.T) {
	for name, tc := range map[string]struct {
		there, back []time.Duration
		corrections int
		right       bool
	}{
		"a fast link":                 {ms(1), ms(1), 0, true},
		"just fast enough":            {ms(7), ms(3), 0, true},
		"slow, and the same back":     {ms(100), ms(100), maxCorrections, false},
		"slow at first":               {ms(300, 2), ms(5, 2), 2, true},
		"slow at first on the way":    {ms(3, 2), ms(300, 2), 2, true},
		"slow, then faster":           {ms(300, 50, 4), ms(100, 50, 4), 2, true},
		"not the same there and back": {ms(8), ms(0), 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &fakeGuest{there: tc.there, back: tc.back}
				p, err := Do(t.Context(), g, Identity{Hostname: "web"})
				if err != nil {
					t.Fatal(err)
				}
				if p.Clock.IsRight() != tc.right || p.Clock.Corrections != tc.corrections {
					t.Errorf("%+v", p)
				}
				// What it says of the error is true in any case.
				if off := (g.ahead - p.Clock.Error).Abs(); off > p.Clock.Bound {
					t.Errorf("the clock is %v ahead, proof says %v ± %v", g.ahead, p.Clock.Error, p.Clock.Bound)
				}
				if tc.right && g.ahead.Abs() > MaxClockError {
					t.Errorf("the clock is %v ahead", g.ahead)
				}
			})
		})
	}
}

// TestClockOfAWorkload is that a step is made only where it is needed for certain.
func TestClockOfAWorkload(t *testing.T) {
	const off = 3 * time.Second
	for name, tc := range map[string]struct {
		ahead       time.Duration
		there, back []time.Duration
		stepped     bool
	}{
		"right":                            {0, ms(1), ms(1), false},
		"a little ahead":                   {9 * time.Millisecond, ms(0), ms(0), false},
		"behind, as one that stood still":  {-off, ms(1), ms(1), true},
		"ahead":                            {off, ms(1), ms(1), true},
		"maybe behind, over a slow link":   {-20 * time.Millisecond, ms(50), ms(50), false},
		"surely behind, over a slow link":  {-off, ms(50), ms(50), true},
		"slow, and not the same both ways": {-off, ms(80), ms(5), true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &fakeGuest{ahead: tc.ahead, there: tc.there, back: tc.back}
				read, err := ReadClock(t.Context(), g)
				if err != nil || g.ahead != tc.ahead || read.IsWrong() != tc.stepped {
					t.Errorf("read %+v, %v of a clock that is %v ahead", read, err, tc.ahead)
				}
				c, err := SetClock(t.Context(), g)
				if err != nil || c.IsWrong() || (g.ahead-c.Error).Abs() > c.Bound {
					t.Errorf("%+v, %v of a clock that is %v ahead", c, err, g.ahead)
				}
				if stepped := g.ahead != tc.ahead; stepped != tc.stepped || stepped != (c.Corrections > 0) {
					t.Errorf("stepped from %v to %v ahead, %+v", tc.ahead, g.ahead, c)
				}
			})
		})
	}
}

func TestIdentity(t *testing.T) {
	g := &fakeGuest{there: ms(0), back: ms(0)}
	first, err := Do(t.Context(), g, Identity{})
	if err != nil {
		t.Fatal(err)
	}
	asked := g.asked
	second, err := Do(t.Context(), g, Identity{})
	if err != nil {
		t.Fatal(err)
	}
	if len(first.MachineID) != 32 || first.MachineID == second.MachineID || len(asked.Entropy) < 32 || string(asked.Entropy) == string(g.asked.Entropy) {
		t.Errorf("machine ids %q and %q, entropy %x and %x", first.MachineID, second.MachineID, asked.Entropy, g.asked.Entropy)
	}
	if first.BootID != "boot" || first.Uptime != time.Second {
		t.Errorf("%+v", first)
	}
	const mine = "0123456789abcdef0123456789abcdef"
	if p, err := Do(t.Context(), g, Identity{MachineID: mine, Hostname: "web"}); err != nil || p.MachineID != mine || p.Hostname != "web" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestRehearsal(t *testing.T) {
	g := &fakeGuest{there: ms(0), back: ms(0), forge: func(r *agentv1.ThawResponse) { r.BootId = "" }}
	if err := Rehearse(t.Context(), g); err != nil || !g.asked.Rehearsal || len(g.asked.Entropy) < 32 {
		t.Errorf("asked %v, %v", g.asked, err)
	}
	if _, err := Do(t.Context(), g, Identity{}); err == nil || g.asked.Rehearsal {
		t.Errorf("asked %v, %v", g.asked, err)
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	for name, forge := range map[string]func(*agentv1.ThawResponse){
		"to another question":  func(r *agentv1.ThawResponse) { r.Nonce = nil },
		"of another machine":   func(r *agentv1.ThawResponse) { r.MachineId = "x" },
		"of another host name": func(r *agentv1.ThawResponse) { r.Hostname = "x" },
		"without a boot id":    func(r *agentv1.ThawResponse) { r.BootId = "" },
	} {
		g := &fakeGuest{there: ms(0), back: ms(0), forge: forge}
		if _, err := Do(t.Context(), g, Identity{Hostname: "web"}); err == nil {
			t.Errorf("an answer %s was taken", name)
		}
	}
	refused := errors.New("refused")
	if _, err := Do(t.Context(), &fakeGuest{there: ms(0), back: ms(0), err: refused}, Identity{}); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
}
