package netbench

import (
	"context"
	"os"
	"strings"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/command"
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
	tools := command.New(time.Minute, 1)
	pfctl := func(stdin string, args ...string) error {
		_, err := tools.Run(ctx, stdin, append([]string{"/sbin/pfctl"}, args...)...)
		// It complains of a host without /etc/pf.os, and loads the rules all the same.
		if err != nil && strings.Contains(err.Error(), "pf.os") {
			return nil
		}
		return err
	}
	if err := pfctl(ruleset, "-q", "-f", "-"); err != nil {
		return err
	}
	if err := pfctl("", "-q", "-e"); err != nil {
		return err
	}
	return f(func(f func() error) error { return f() })
}
