// Command netbench is of Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "netbench: it measures in a network namespace of its own, which FreeBSD has not")
	os.Exit(1)
}
