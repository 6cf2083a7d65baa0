//go:build linux

// Command conformance runs suites that others wrote, in a lab, and judges what
// they say: it is what `make conformance` runs.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// options are the command's.
type options struct {
	suites   []string
	handler  string
	focus    string
	out      string
	check    bool
	parallel int
}

func main() {
	var o options
	suites := flag.String("suites", "", "comma-separated `names` of the suites to run; all by default")
	flag.StringVar(&o.handler, "handler", lab.HandlerBhyve, "CRI runtime `handler` to test; with another than this repository's nothing is judged")
	flag.StringVar(&o.focus, "focus", "", "run only tests whose name matches this `pattern`, and judge only them")
	flag.StringVar(&o.out, "out", ".cache/conformance", "`directory` for the suites' own output")
	flag.BoolVar(&o.check, "check", false, "compare the outcome with the checked-in document instead of writing it")
	flag.IntVar(&o.parallel, "parallel", 3, "how many tests of critest to run at once")
	flag.Parse()
	if *suites != "" {
		o.suites = strings.Split(*suites, ",")
	}
	lab.Enter(func() int {
		if err := run(context.Background(), o); err != nil {
			fmt.Fprintln(os.Stderr, "conformance:", err)
			return 1
		}
		return 0
	})
}
