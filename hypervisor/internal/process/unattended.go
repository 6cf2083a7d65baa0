package process

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd/errdefs"
)

// dirEnv is the machine's directory in the environment of its process.
const dirEnv = "CONTAINERD_SHIM_BHYVE_MACHINE"

// Orphan is a process that nobody attends to.
type Orphan struct {
	ID proc.ID
	// Dir is what New was called with. It may not be there any more.
	Dir string
}

// Unattended are the processes with directories below dir that are nobody's. Those
// for whose directory known is true are not looked at.
// Every owner reads the console from Start or Adopt until Disown or its own end,
// and the process has it open itself: so it is known without any name or record
// that might have been lost.
func Unattended(dir string, known func(dir string) bool) ([]Orphan, error) {
	all, err := proc.WithEnv(dirEnv)
	if err != nil {
		return nil, err
	}
	var orphans []Orphan
	for id, of := range all {
		rel, err := filepath.Rel(dir, of)
		if err != nil || rel == "." || !filepath.IsLocal(rel) || known(of) {
			continue
		}
		o := Orphan{ID: id, Dir: of}
		attended, err := o.attended()
		if err != nil {
			return nil, err
		}
		if !attended {
			orphans = append(orphans, o)
		}
	}
	return orphans, nil
}

// attended says as well that one which has ended is.
func (o Orphan) attended() (bool, error) {
	const stdout = 1
	attended, err := o.ID.Shares(stdout)
	if errdefs.IsNotFound(err) {
		return true, nil
	}
	return attended, err
}

// Kill ends the process, unless somebody attends to it by now.
func (o Orphan) Kill(ctx context.Context) error {
	attended, err := o.attended()
	if err == nil && attended {
		if alive, aerr := o.ID.Alive(); aerr != nil || !alive {
			return aerr
		}
		err = fmt.Errorf("process %s has an owner: %w", o.ID, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return err
	}
	return o.ID.Kill(ctx)
}
