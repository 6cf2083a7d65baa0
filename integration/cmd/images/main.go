//go:build linux

// Command images writes the lab's images into a directory, for a lab on a host
// that cannot make them.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

func main() {
	out := flag.String("out", ".", "`directory` to write to")
	probe := flag.String("probe", "", "the probe `program`")
	flag.Parse()
	if err := lab.WriteArchives(*out, *probe); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}
