//go:build linux

// Command bhyve-agent is the /init of the guest image: process 1 of every
// sandbox's virtual machine. See package agent.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agent"
)

// The first thread is the process to others: /proc/1/ns is its. Threads that are
// given another namespace must not be this one.
func init() { runtime.LockOSThread() }

func main() {
	if len(os.Args) == 2 && os.Args[1] == agent.PauseCommand {
		fmt.Fprintln(os.Stderr, "bhyve-agent: pause:", agent.Pause())
		os.Exit(1)
	}
	// It mounts over the root and reboots the machine: not on a host.
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "bhyve-agent: this is the init of a virtual machine: it runs as process 1 only")
		os.Exit(2)
	}
	if err := agent.Halt(agent.Run(context.Background())); err != nil {
		fmt.Fprintln(os.Stderr, "bhyve-agent: halt:", err)
		os.Exit(1)
	}
}
