package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
)

// Kind is Receipt's kind in a receipt book.
const Kind = "process"

func init() {
	receipt.Register(Kind, func() receipt.Resource { return new(Receipt) })
}

// Receipt is a process that a sandbox has on the host. It is written with Arg
// alone before the process is started and amended with ID once that is known;
// Undo kills whichever process it names.
type Receipt struct {
	ID ID `json:"id"`
	// Arg is one whole argument on the process's command line that no other
	// process ever has, such as a random UUID.
	Arg string `json:"arg"`
}

// minArgLength keeps an argument that cannot be unique from killing bystanders.
const minArgLength = 16

// Kind implements receipt.Resource.
func (r *Receipt) Kind() string { return Kind }

// Undo implements receipt.Resource. It returns once the process has exited.
func (r *Receipt) Undo(ctx context.Context) error {
	if r.ID != (ID{}) {
		return r.ID.Kill(ctx)
	}
	if len(r.Arg) < minArgLength {
		return fmt.Errorf("process receipt with argument %q: too short to be unique: %w", r.Arg, errdefs.ErrInvalidArgument)
	}
	found, err := findByArg(r.Arg)
	if err != nil {
		return fmt.Errorf("find process by argument %q: %w", r.Arg, err)
	}
	var errs []error
	for _, id := range found {
		errs = append(errs, id.Kill(ctx))
	}
	return errors.Join(errs...)
}

// findByArg returns the running processes one of whose arguments is arg.
func findByArg(arg string) (found []ID, err error) {
	err = forEach(func(id ID, cmdline []byte) {
		if hasArg(cmdline, arg) {
			found = append(found, id)
		}
	})
	return found, err
}

// Arguments says which of args is one whole argument of some process that
// runs.
func Arguments(args ...string) (map[string]bool, error) {
	present := map[string]bool{}
	err := forEach(func(_ ID, cmdline []byte) {
		for _, arg := range args {
			if hasArg(cmdline, arg) {
				present[arg] = true
			}
		}
	})
	return present, err
}

// hasArg says whether arg is one of the NUL-terminated arguments in cmdline.
func hasArg(cmdline []byte, arg string) bool {
	for a := range bytes.SplitSeq(cmdline, []byte{0}) {
		if string(a) == arg {
			return true
		}
	}
	return false
}
