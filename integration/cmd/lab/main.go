//go:build linux

// Command lab runs one container under a containerd of its own and leaves nothing
// behind: it is what `make run` and `make shell` start.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

func main() {
	runtime := flag.String("runtime", lab.RuntimeBhyve, "containerd `runtime` to run the container with")
	shell := flag.Bool("shell", false, "run an interactive shell instead of the demonstration")
	flag.Parse()
	lab.Enter(func() int {
		code, err := show(context.Background(), *runtime, *shell)
		if err != nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
			return 1
		}
		return code
	})
}
