package receipt

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
)

// Mount is a file system mounted at Target.
type Mount struct {
	Target string `json:"target"`
}

func init() {
	Register(Mount{}.Kind(), func() Resource { return new(Mount) })
}

// Kind implements Resource.
func (Mount) Kind() string { return "mount" }

// Undo unmounts everything at and below Target. A mount that is still in use
// is detached: what holds it belongs to the same sandbox, and ends with it.
func (m Mount) Undo(context.Context) error {
	if err := mount.UnmountRecursive(m.Target, undoUnmountFlags); err != nil {
		return fmt.Errorf("unmount %s: %w", m.Target, err)
	}
	return nil
}
