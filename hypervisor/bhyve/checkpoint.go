package bhyve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/checkpoint"
	"github.com/containerd/errdefs"
)

var _ hypervisor.Checkpointer = (*machine)(nil)

// The files of a checkpoint (usr.sbin/bhyve/snapshot.c, vm_checkpoint): the
// guest's memory, what of the kernel and of the devices is saved, and where in
// the second file each part of that is.
const (
	memoryName = "machine"
	kernName   = memoryName + ".kern"
	metaName   = memoryName + ".meta"
)

var savedNames = []string{memoryName, kernName, metaName}

// suspendedExit is how long bhyve(8) may take to exit once it has saved all.
const suspendedExit = 5 * time.Second

// supportsCheckpoint returns errdefs.ErrNotImplemented with what is missing.
func supportsCheckpoint(v vmm) error {
	can, err := v.SupportsCheckpoint()
	if err != nil {
		return err
	}
	if !can {
		return fmt.Errorf("the kernel was built without options BHYVE_SNAPSHOT, or bhyve without WITH_BHYVE_SNAPSHOT: %w", errdefs.ErrNotImplemented)
	}
	return nil
}

// exists says whether dir, if there is one, holds a checkpoint.
func exists(dir string) (bool, error) {
	if dir == "" {
		return false, nil
	}
	return checkpoint.Exists(dir)
}

// vacate removes what is not a checkpoint from where one would be.
func vacate(dir string) error {
	if is, err := exists(dir); err != nil || is || dir == "" {
		return err
	}
	var errs []error
	for _, name := range savedNames {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Checkpoint implements hypervisor.Checkpointer. errdefs.ErrNotImplemented where
// kernel or bhyve(8) were built without it, as FreeBSD's releases are.
func (m *machine) Checkpoint(ctx context.Context) error {
	if err := m.checkpoint(ctx); err != nil {
		return fmt.Errorf("checkpoint machine %s: %w", m.ID(), err)
	}
	return nil
}

func (m *machine) checkpoint(ctx context.Context) error {
	if m.Process.HasExited() {
		return hypervisor.ErrExited
	}
	if err := m.cfg.ValidateSave(); err != nil {
		return err
	}
	dir := m.cfg.CheckpointDir
	if dir == "" {
		return fmt.Errorf("it was started without a directory for it: %w", errdefs.ErrFailedPrecondition)
	}
	if err := supportsCheckpoint(m.vmm); err != nil {
		return err
	}
	if is, err := checkpoint.Exists(dir); err != nil || is {
		return errors.Join(err, fmt.Errorf("%s: %w", dir, errdefs.ErrAlreadyExists))
	}
	g, err := readGuest(m.dir)
	if err != nil {
		return err
	}
	is, err := describe(m.vmm, g)
	if err != nil {
		return err
	}
	if err := m.suspend(ctx, filepath.Join(dir, memoryName)); err != nil {
		return errors.Join(err, vacate(dir))
	}
	if err := checkSaved(dir, m.cfg.MemoryMiB); err != nil {
		return errors.Join(err, vacate(dir))
	}
	return checkpoint.Write(dir, is, savedNames...)
}

// suspend has bhyve(8) save the machine and end. Nothing but its exit status
// says that it has: when it could not, the machine runs on.
func (m *machine) suspend(ctx context.Context, file string) error {
	m.suspending.Store(true)
	defer m.suspending.Store(false)
	// One that is parked hears of nothing.
	if err := m.Wake(); err != nil {
		return err
	}
	if err := m.vmm.suspend(ctx, m.vm, file); err != nil && !m.Process.HasExited() {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, suspendedExit, errors.New("it runs on"))
	defer cancel()
	select {
	case <-m.Done():
	case <-ctx.Done():
		return fmt.Errorf("%w; bhyve says: %s", context.Cause(ctx), bytes.TrimSpace(m.Process.Stderr()))
	}
	if status, known := m.Process.Status(); !known || status.ExitStatus() != exitSuspended {
		return fmt.Errorf("%w: %s", hypervisor.ErrExited, m.Exit().Detail)
	}
	return nil
}

// checkSaved looks whether the files are whole: bhyve(8) does not, and reads on
// for ever in one that ends too early (vm_snapshot_mem_part).
func checkSaved(dir string, memoryMiB int) error {
	size := func(name string) (int64, error) {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return 0, err
		}
		return info.Size(), nil
	}
	memory, err := size(memoryName)
	if err != nil {
		return err
	}
	if want := int64(memoryMiB) << 20; memory != want {
		return fmt.Errorf("%s has %d bytes: want %d, the guest's memory", memoryName, memory, want)
	}
	kern, err := size(kernName)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(dir, metaName))
	if err != nil {
		return err
	}
	var meta any
	if err := json.Unmarshal(data, &meta); err != nil {
		return fmt.Errorf("%s: %w", metaName, err)
	}
	if end := endOf(meta); end == 0 || end > float64(kern) {
		return fmt.Errorf("%s names %.0f bytes, %s has %d", metaName, end, kernName, kern)
	}
	return nil
}

// endOf is the end of the last part that the metadata name, in bytes from the
// beginning: each is an object with a size and a file_offset.
func endOf(meta any) (end float64) {
	switch m := meta.(type) {
	case []any:
		for _, v := range m {
			end = max(end, endOf(v))
		}
	case map[string]any:
		size, _ := m["size"].(float64)
		offset, ok := m["file_offset"].(float64)
		if ok {
			end = offset + size
		}
		for _, v := range m {
			end = max(end, endOf(v))
		}
	}
	return end
}

// describe is what a checkpoint of a machine is of.
func describe(v vmm, g guest) (checkpoint.Machine, error) {
	is := checkpoint.Machine{
		Backend: Backend{}.Name(), VCPUs: g.VCPUs, MemoryMiB: g.MemoryMiB, Cmdline: g.Cmdline,
	}
	var err error
	if is.Monitor, is.CPU, err = v.build(); err != nil {
		return is, err
	}
	// Taps are not compared, and at a restore not made yet.
	g.NICs = slices.Clone(g.NICs)
	for i := range g.NICs {
		g.NICs[i].Tap = "tap0"
	}
	conf, err := g.file()
	if err != nil {
		return is, err
	}
	for line := range strings.Lines(string(conf)) {
		if line = strings.TrimSpace(line); !ownValue(line) {
			is.Hardware = append(is.Hardware, line)
		}
	}
	for _, f := range []struct {
		path string
		to   *string
	}{{g.Kernel, &is.Kernel}, {g.Initrd, &is.Initrd}} {
		if *f.to, err = checkpoint.Digest(f.path); err != nil {
			return is, err
		}
	}
	return is, nil
}

// ownValue says whether a line of the configuration is one that two machines of
// one checkpoint need not have in common.
func ownValue(line string) bool {
	key, _, _ := strings.Cut(line, "=")
	return key == "name" || key == "uuid" || strings.HasSuffix(key, ".cpuset") || strings.HasSuffix(key, ".backend") || strings.HasSuffix(key, ".mac")
}
