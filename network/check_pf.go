package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/pf"
)

func (h *freebsd) check(ctx context.Context, r *record) error {
	var tap, bridge string
	unset, err := h.unset()
	// Who finds something does not keep the others from looking.
	errs := make([]error, 5)
	_ = h.pf.Together(ctx,
		func(ctx context.Context) error { errs[0] = h.pf.Check(ctx, h.cfg.Bridge); return nil },
		func(ctx context.Context) error { errs[1] = h.pf.CheckSandbox(ctx, h.sandbox(r, nil)); return nil },
		func(ctx context.Context) error {
			if r.Pipe != 0 {
				errs[2] = h.pf.CheckPipe(ctx, r.Pipe, r.Policy.Bandwidth)
			}
			return nil
		},
		func(ctx context.Context) error { tap, errs[3] = h.iface(ctx, r.Tap); return nil },
		func(ctx context.Context) error { bridge, errs[4] = h.iface(ctx, h.cfg.Bridge); return nil })
	errs = append(errs, err)
	groups, member := lineOf(tap, "groups: "), lineOf(bridge, "member: "+r.Tap+" ")
	for _, want := range []struct {
		ok   bool
		what string
	}{
		{(r.Pipe != 0) == (r.Policy.Bandwidth != 0), "the bandwidth is not the policy's"},
		{len(unset) == 0, fmt.Sprintf("not set: %q", unset)},
		{strings.Contains(tap, "description: "+h.mark(r.ID)+"\n"), r.Tap + " is not there"},
		{strings.Contains(tap, "<UP,"), r.Tap + " is down"},
		{strings.Contains(groups, pf.Group) && strings.Contains(groups, pf.TapGroup), r.Tap + " is not in the groups that are denied everything"},
		{member != "", r.Tap + " is not on the bridge"},
		{strings.Contains(member, "PRIVATE") && !strings.Contains(member, "LEARNING"), r.Tap + " is no private member of the bridge"},
		{strings.Contains(bridge, h.gateway()), "the bridge is not set up"},
	} {
		if !want.ok {
			errs = append(errs, errors.New(want.what))
		}
	}
	return errors.Join(errs...)
}

// lineOf is the rest of the first line that begins with a word, "" if none does.
func lineOf(text, begin string) string {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), begin); ok {
			return rest
		}
	}
	return ""
}

func (h *freebsd) counters(ctx context.Context, records []*record) (map[string]Counters, error) {
	all := map[string]Counters{}
	for _, r := range records {
		d, err := h.pf.Denied(ctx, h.sandbox(r, nil))
		if err != nil {
			return nil, err
		}
		c := Counters{Denied: d.Denied, Spoofed: d.Spoofed}
		// A tap that is not there has carried nothing.
		if out, err := h.pf.Run(ctx, "", netstat, "--libxo", "json", "-bn", "-I", r.Tap); err == nil {
			c.addTap(out)
		}
		all[r.Anchor] = c
	}
	return all, nil
}

// addTap reads netstat's counters of a tap. What the tap receives, the guest has
// sent.
func (c *Counters) addTap(out []byte) {
	var v struct {
		Statistics struct {
			Interface []struct {
				ReceivedPackets uint64 `json:"received-packets"`
				ReceivedBytes   uint64 `json:"received-bytes"`
				SentPackets     uint64 `json:"sent-packets"`
				SentBytes       uint64 `json:"sent-bytes"`
			} `json:"interface"`
		} `json:"statistics"`
	}
	if json.Unmarshal(out, &v) != nil || len(v.Statistics.Interface) == 0 {
		return
	}
	// The first line is the interface itself, further ones its addresses.
	i := v.Statistics.Interface[0]
	c.SentPackets, c.SentBytes, c.ReceivedPackets, c.ReceivedBytes = i.ReceivedPackets, i.ReceivedBytes, i.SentPackets, i.SentBytes
}
