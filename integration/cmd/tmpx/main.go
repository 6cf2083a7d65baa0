//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

func main() {
	lab.Enter(func() int {
		ctx := context.Background()
		l, err := lab.Start(ctx)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer l.Close(ctx)
		n, err := lab.NewNerdctlClient(l)
		if err != nil {
			fmt.Println(err)
		}
		if os.Getenv("CRI") != "" {
			if _, err := lab.NewCrictlClient(l.Context(ctx), l); err != nil {
				fmt.Println(err)
			}
		}
		cmd := n.Command(ctx)
		sh := exec.Command("bash", "-c", os.Args[1])
		sh.Env = append(cmd.Env, "LAB="+l.Dir, "CONTAINER_RUNTIME_ENDPOINT=unix:///run/containerd/containerd.sock")
		sh.Stdin, sh.Stdout, sh.Stderr = os.Stdin, os.Stdout, os.Stderr
		err = sh.Run()
		if err != nil {
			fmt.Println(err)
		}
		l.CopyLog("/tmp/conform-containerd.log")
		return 0
	})
}
