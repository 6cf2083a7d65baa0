//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/image"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

// show runs the container and returns its exit code. Whatever comes of it,
// nothing may be left but the containerd that served it.
func show(ctx context.Context, runtime string, shell bool) (int, error) {
	say("starting a containerd in a network namespace of its own")
	l, err := lab.Start(ctx)
	if err != nil {
		return 0, err
	}
	defer l.Close(ctx)

	run := demonstrate
	if shell {
		run = interact
	}
	code, err := run(ctx, l, runtime)
	if err != nil || code != 0 {
		fmt.Fprintf(os.Stderr, "containerd's log ends with:\n%s\n", l.LogTail(30))
	}
	if err != nil {
		return 0, err
	}
	say("looking for anything left behind")
	if err := l.Leaks(ctx); err != nil {
		return 0, err
	}
	say("nothing left: no process, interface, mount, socket or cgroup")
	return code, nil
}

// script is what the demonstration's container prints for people. Its last
// line is for this program.
const script = `echo "hello from a container: process $$, user $(id -un)"
uname -a
echo "booted at $(date -u -d @$(($(date +%s) - $(cut -d. -f1 /proc/uptime))))"
` + image.ProbePath + " boot"

func demonstrate(ctx context.Context, l *lab.Lab, runtime string) (int, error) {
	say("ctr run --rm --runtime %s %s demo sh -c …", runtime, lab.Image)
	began := time.Now()
	cmd := l.Command(ctx, "run", "--rm", "--runtime", runtime, lab.Image, "demo", "/bin/sh", "-c", script)
	cmd.Stderr = os.Stderr
	r, err := l.Complete(cmd)
	if err != nil {
		return 0, err
	}
	fmt.Print(r.Stdout)
	if r.Code != 0 {
		return r.Code, fmt.Errorf("the container exited with code %d", r.Code)
	}
	took := time.Since(began)

	guest, err := lastBoot(r.Stdout)
	if err != nil {
		return 0, err
	}
	host, err := hostBoot(ctx, l)
	if err != nil {
		return 0, err
	}
	fmt.Printf("\n%-10s %-12s %-38s %s\n", "", "up for", "boot id", "kernel")
	for _, row := range []struct {
		who  string
		boot pattern.Boot
	}{{"container", guest}, {"host", host}} {
		up := time.Duration(row.boot.UptimeSeconds * float64(time.Second)).Round(10 * time.Millisecond)
		fmt.Printf("%-10s %-12v %-38s %s\n", row.who, up, row.boot.BootID, row.boot.Kernel)
	}
	fmt.Printf("\nfrom `ctr run` to its end: %v\n", took.Round(10*time.Millisecond))
	if runtime == lab.RuntimeBhyve && guest.BootID == host.BootID {
		return 0, errors.New("the container ran on the host's kernel")
	}
	return 0, nil
}

func interact(ctx context.Context, l *lab.Lab, runtime string) (int, error) {
	say("ctr run --rm -t --runtime %s %s shell /bin/sh   (exit ends it)", runtime, lab.Image)
	cmd := l.Command(ctx, "run", "--rm", "-t", "--runtime", runtime, lab.Image, "shell", "/bin/sh")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	r, err := l.Complete(cmd)
	return r.Code, err
}

func lastBoot(out string) (boot pattern.Boot, err error) {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &boot); err != nil {
		return boot, fmt.Errorf("last line of the container's output: %w", err)
	}
	return boot, nil
}

// hostBoot asks the same program outside of any container.
func hostBoot(ctx context.Context, l *lab.Lab) (pattern.Boot, error) {
	out, err := exec.CommandContext(ctx, l.Probe(), "boot").Output()
	if err != nil {
		return pattern.Boot{}, err
	}
	return lastBoot(string(out))
}

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "==> "+format+"\n", args...)
}
