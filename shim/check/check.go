// Package check tells an administrator what this host has of what machines
// need, and how to get the rest.
package check

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/guest"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
)

// itemTimeout bounds one item.
const itemTimeout = 30 * time.Second

// item is one thing to look for.
type item struct {
	name string
	// optional is true where machines run without it.
	optional bool
	// look returns what was found, or an error that says what is missing and how
	// to mend it.
	look func(context.Context) (found string, err error)
}

// Run looks at everything, says in plain words on w what there is, and returns
// the exit status: 0 if machines can run here, 1 if not.
func Run(ctx context.Context, w io.Writer) int {
	items := []item{{name: "configuration", look: configuration}, {name: "guest image", look: image}}
	items = append(items, system()...)
	return run(ctx, w, append(items, networks()...))
}

func run(ctx context.Context, w io.Writer, items []item) (status int) {
	for _, it := range items {
		found, err := it.try(ctx)
		switch {
		case err == nil:
			fmt.Fprintf(w, "ok       %s: %s\n", it.name, found)
		case it.optional:
			fmt.Fprintf(w, "without  %s: %s\n", it.name, oneLine(err))
		default:
			fmt.Fprintf(w, "MISSING  %s: %s\n", it.name, oneLine(err))
			status = 1
		}
	}
	if status != 0 {
		fmt.Fprintln(w, "Machines cannot run here until what is missing is there.")
	}
	return status
}

func (i item) try(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, itemTimeout)
	defer cancel()
	return i.look(ctx)
}

// oneLine keeps one item on one line of the output.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// configuration is the file that the shim would read. Another may be given to a
// single container.
func configuration(context.Context) (string, error) {
	c, err := config.FromOptions(nil)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d vCPU, %d MiB a machine, guest image in %s", c.Machine.VCPUs, c.Machine.MemoryMiB, c.Guest.Dir), nil
}

func image(context.Context) (string, error) {
	c, err := config.FromOptions(nil)
	if err != nil {
		return "", fmt.Errorf("unknown without the configuration")
	}
	img, err := guest.Open(c.Guest.Dir)
	if err != nil {
		return "", err
	}
	if err := img.Verify(); err != nil {
		return "", err
	}
	return "Linux " + img.Manifest.KernelRelease, nil
}
