package link

import (
	"bufio"
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Group is the group of interfaces that every link's tap is in on FreeBSD. One
// static part of the host's pf.conf(5) fences it: see FenceRules.
const Group = "bhyvelink"

// FenceRules is what an administrator puts into pf.conf(5), before every other
// filter rule that is "quick" and not for one interface: nothing comes in from a
// guest but TCP segments of connections that the host has opened. Without
// state: a connection may be silent for as long as its machine is paused.
const FenceRules = `pass in quick on bhyvelink inet6 proto tcp all flags A/A no state
pass in quick on bhyvelink inet6 proto tcp all flags R/R no state
block drop in quick on bhyvelink all
pass out quick on bhyvelink all no state
`

// checkRules looks for the fence in what `pfctl -s rules` prints: a rule that
// ends the matter for every packet from the group, with nothing before it that
// lets packets of just any interface in.
func checkRules(rules []byte) error {
	unfenced := func(why string) error {
		return fmt.Errorf("pf does not keep guests from the host (%s): put the rules for %s of docs/freebsd.md into pf.conf and load them: %w",
			why, Group, errdefs.ErrFailedPrecondition)
	}
	for lines := bufio.NewScanner(bytes.NewReader(rules)); lines.Scan(); {
		w := strings.Fields(lines.Text())
		if len(w) == 0 || !slices.Contains(w, "quick") || slices.Contains(w, "out") {
			continue
		}
		on := slices.Index(w, "on")
		switch {
		case w[0] == "block" && on >= 0 && slices.Equal(w[on:], []string{"on", Group, "all"}):
			return nil
		case w[0] == "pass" && on < 0:
			return unfenced("an earlier rule lets everything in: " + lines.Text())
		}
	}
	return unfenced("there is no rule for that group")
}
