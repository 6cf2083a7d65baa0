// Package rootfs mounts on the host what containerd hands over as a container's
// root filesystem.
//
// That is a list of mounts, each at the same place over the one before it, as
// mount(8) has them. A client may also leave to the runtime what containerd's own
// mount manager does as a rule (core/mount/manager): a type "format/mkdir/overlay"
// is an overlay whose options name, as "{{ mount 0 }}", where the mounts before it
// are, and that needs directories made in them.
package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// Mount mounts all of mounts at target, an existing directory. The parts of which
// the last one is made, if it is made of any, are mounted in numbered directories
// below parts. A receipt for each is in book before it is mounted.
//
// undo gives everything back. After an error, too, it is for the caller to call.
func Mount(book *receipt.Book, mounts []*types.Mount, target, parts string) (undo func(context.Context) error, err error) {
	var lines []*receipt.Receipt
	undo = func(ctx context.Context) error {
		var errs []error
		for _, line := range slices.Backward(lines) {
			errs = append(errs, line.Undo(ctx))
		}
		return errors.Join(errs...)
	}
	take := func(at string) error {
		line, err := book.Write(receipt.Mount{Target: at})
		if err == nil {
			lines = append(lines, line)
		}
		return err
	}
	// What comes before the last that is made of others is one of its parts.
	first := 0
	for i, m := range mounts {
		if len(steps(m.Type)) > 0 {
			first = i
		}
	}
	var active []mount.ActiveMount
	for i, m := range mounts[:first] {
		made, err := realize(m, active)
		if err != nil {
			return undo, err
		}
		at := filepath.Join(parts, strconv.Itoa(i))
		if err := os.MkdirAll(at, 0o700); err != nil {
			return undo, fmt.Errorf("rootfs: %w", err)
		}
		if err := take(at); err != nil {
			return undo, err
		}
		if err := made.Mount(at); err != nil {
			return undo, fmt.Errorf("mount part %d of the rootfs: %w", i, err)
		}
		active = append(active, mount.ActiveMount{Mount: made, MountPoint: at})
	}
	var last []mount.Mount
	for _, m := range mounts[first:] {
		made, err := realize(m, active)
		if err != nil {
			return undo, err
		}
		last = append(last, made)
	}
	if err := take(target); err != nil {
		return undo, err
	}
	if err := mount.All(last, target); err != nil {
		return undo, fmt.Errorf("mount rootfs: %w", err)
	}
	return undo, nil
}
