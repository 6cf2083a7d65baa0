package link

import (
	"testing"

	"github.com/containerd/errdefs"
)

func TestFence(t *testing.T) {
	for name, tc := range map[string]struct {
		rules  string
		fenced bool
	}{
		"the rules as they are shipped": {FenceRules, true},
		"as pfctl prints them": {`pass in quick on bhyvelink inet6 proto tcp all flags A/A no state
pass in quick on bhyvelink inet6 proto tcp all flags R/R no state
block drop in quick on bhyvelink all
pass out quick on bhyvelink all flags S/SA no state
`, true},
		"rules for another interface, and outgoing ones, before": {"pass in quick on em0 all\npass out quick all keep state\npass all\nblock drop in quick on bhyvelink all\n", true},
		"both directions blocked":                                {"block drop quick on bhyvelink all\n", true},
		"none":                                                   {"", false},
		"not quick":                                              {"block drop in on bhyvelink all\npass all\n", false},
		"part of the packets":                                    {"block drop in quick on bhyvelink inet all\n", false},
		"another group":                                          {"block drop in quick on bhyvelinks all\n", false},
		"everything passes before":                               {"pass in quick all flags S/SA keep state\nblock drop in quick on bhyvelink all\n", false},
		"outgoing":                                               {"block drop out quick on bhyvelink all\n", false},
	} {
		err := checkRules([]byte(tc.rules))
		if (err == nil) != tc.fenced || err != nil && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
