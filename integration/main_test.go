//go:build linux || freebsd

package integration

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// theLab serves all tests: starting a containerd for each would test no more.
var theLab *lab.Lab

func TestMain(m *testing.M) {
	flag.Parse()
	lab.Enter(func() int {
		ctx := context.Background()
		var err error
		if theLab, err = lab.Start(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "start the lab:", err)
			return 1
		}
		code := m.Run()
		if err := theLab.Close(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "close the lab:", err)
			code = max(code, 1)
		}
		return code
	})
}
