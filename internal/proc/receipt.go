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
// or Env alone before the process is started and amended with ID once that is
// known; Undo kills whichever process it names.
type Receipt struct {
	ID ID `json:"id"`
	// Arg is one whole argument on the process's command line that no other
	// process ever has, such as a random UUID.
	Arg string `json:"arg,omitempty"`
	// Env is the same in its environment, for a program whose arguments are not
	// ours to choose. What the process has started itself has it as well.
	Env string `json:"env,omitempty"`
}

// minMarkLength keeps a mark that cannot be unique from killing bystanders.
const minMarkLength = 16

// Kind implements receipt.Resource.
func (r *Receipt) Kind() string { return Kind }

// Undo implements receipt.Resource. It returns once the process has exited.
func (r *Receipt) Undo(ctx context.Context) error {
	found, err := r.Find()
	errs := []error{err}
	for _, id := range found {
		errs = append(errs, id.Kill(ctx))
	}
	return errors.Join(errs...)
}

// Find returns the processes that the receipt names. They may have exited.
func (r *Receipt) Find() ([]ID, error) {
	if r.ID != (ID{}) {
		return []ID{r.ID}, nil
	}
	mark, where := r.Arg, arguments
	if r.Env != "" {
		mark, where = r.Env, environment
	}
	if len(mark) < minMarkLength {
		return nil, fmt.Errorf("process receipt with mark %q: too short to be unique: %w", mark, errdefs.ErrInvalidArgument)
	}
	var found []ID
	err := forEach(func(id ID) {
		// The identity came first: if the pid has been reused since, it is stale
		// and nothing is done to the newcomer.
		if strings, err := where(id.Pid); err == nil && hasString(strings, mark) {
			found = append(found, id)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("find process by %q: %w", mark, err)
	}
	return found, nil
}

// Arguments says which of args is one whole argument of some process that
// runs.
func Arguments(args ...string) (map[string]bool, error) {
	present := map[string]bool{}
	err := forEach(func(id ID) {
		cmdline, err := arguments(id.Pid)
		if err != nil {
			return
		}
		for _, arg := range args {
			if hasString(cmdline, arg) {
				present[arg] = true
			}
		}
	})
	return present, err
}

// hasString says whether s is one of the NUL-terminated strings in data.
func hasString(data []byte, s string) bool {
	for a := range bytes.SplitSeq(data, []byte{0}) {
		if string(a) == s {
			return true
		}
	}
	return false
}
