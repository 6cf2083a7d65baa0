package netbench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/jail"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/pf"
)

// inJail is set in the jail.
const inJail = "NETBENCH_JAIL"

// ruleset is an administrator's, with room for the largest population and for the
// anchors of sandboxes that have gone, which pf keeps for half a minute.
const ruleset = "set limit { anchors 4096, eth-anchors 4096 }\n" + pf.MainRules + "pass all\n"

// onHost runs this program again, in a VNET jail, and there calls f.
func onHost(ctx context.Context, f func(host) error) error {
	if os.Getenv(inJail) == "" {
		return jail.Self(0, os.Stdout, os.Stderr, inJail+"=1")
	}
	pfctl := func(stdin string, args ...string) error {
		cmd := exec.CommandContext(ctx, "/sbin/pfctl", args...)
		cmd.Stdin = strings.NewReader(stdin)
		// It complains of a host without /etc/pf.os, and loads the rules all the same.
		if out, err := cmd.CombinedOutput(); err != nil && !strings.Contains(string(out), "pf.os") {
			return fmt.Errorf("pfctl %q: %w: %s", args, err, out)
		}
		return nil
	}
	if err := pfctl(ruleset, "-q", "-f", "-"); err != nil {
		return err
	}
	if err := pfctl("", "-q", "-e"); err != nil {
		return err
	}
	return f(func(f func() error) error { return f() })
}
