package bhyve

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/vmmapi"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// vmm is what the owner of machines asks of vmm(4). None of it waits for a
// vCPU, so it is safe against a bhyve(8) that is stopped or wedged.
type vmm interface {
	MaxVCPUs() (int, error)
	List() ([]string, error)
	// Destroy returns errdefs.ErrNotFound where there is no such virtual
	// machine; so do the others.
	Destroy(name string) error
	// active says whether bhyve(8) lets the first vCPU run.
	active(name string) (bool, error)
	powerOff(name string) error
	// SupportsCheckpoint says whether a virtual machine can be saved, suspend
	// asks its bhyve(8) to, and build is what can read it again.
	SupportsCheckpoint() (bool, error)
	suspend(ctx context.Context, name, file string) error
	build() (monitor, processor string, err error)
	// unpin lets the process run on all CPUs.
	unpin(ctx context.Context, pid int) error
	// usage is what a virtual machine's vCPUs have counted. It is the one that
	// waits for the vCPUs, which a stopped bhyve(8) may hold up.
	usage(name string) (vmUsage, error)
}

// vmUsage is from vmm(4)'s statistics (sys/amd64/vmm/vmm.c).
type vmUsage struct{ Exits, Resident uint64 }

// thisHost is vmm(4) through libvmmapi.
type thisHost struct{ *vmmapi.Host }

func (h thisHost) active(name string) (bool, error) {
	vm, err := h.Open(name)
	if err != nil {
		return false, err
	}
	defer vm.Close()
	// bhyve holds each vCPU until it has set up, or restored, all the rest
	// (usr.sbin/bhyve/bhyverun.c, fbsdrun_addcpu).
	active, err := vm.ActiveVCPUs()
	if err != nil {
		return false, err
	}
	held, err := vm.DebugVCPUs()
	return slices.Contains(active, 0) && !slices.Contains(held, 0), err
}

func (h thisHost) powerOff(name string) error {
	vm, err := h.Open(name)
	if err != nil {
		return err
	}
	defer vm.Close()
	return vm.Suspend(vmmapi.SuspendPowerOff)
}

func (h thisHost) usage(name string) (u vmUsage, err error) {
	vm, err := h.Open(name)
	if err != nil {
		return u, err
	}
	defer vm.Close()
	active, err := vm.ActiveVCPUs()
	if err != nil {
		return u, err
	}
	for _, id := range active {
		vcpu, err := vm.VCPU(id)
		if err != nil {
			return u, err
		}
		stats, err := vcpu.Stats()
		if err != nil {
			return u, err
		}
		u.Exits += stats.Values["total number of vm exits"]
		// The whole virtual machine's, told by vCPU 0.
		u.Resident += stats.Values["Resident memory"]
	}
	return u, nil
}

// vmKind is vmReceipt's kind in a receipt book.
const vmKind = "vm"

func init() {
	receipt.Register(vmKind, func() receipt.Resource { return new(vmReceipt) })
}

// vmReceipt is a virtual machine of vmm(4), which outlives its bhyve(8).
type vmReceipt struct {
	Name string `json:"name"`
}

// Kind implements receipt.Resource.
func (vmReceipt) Kind() string { return vmKind }

// Undo implements receipt.Resource. Names follow from the bundle and are
// nobody else's.
func (r vmReceipt) Undo(context.Context) error {
	if !isOurs(r.Name) {
		return fmt.Errorf("virtual machine %q is not one of ours: %w", r.Name, errdefs.ErrInvalidArgument)
	}
	return errors.Join(destroyed(vmmapi.ThisHost().Destroy(r.Name)), removeCheckpointSocket(r.Name))
}

// destroyed makes a success of what is gone already.
func destroyed(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// destroyOrphans destroys the virtual machines of ours that no process runs or
// loads. Their bhyve(8) was killed, and so was whoever should have destroyed
// them: they would keep the guest's memory until the host restarts.
func destroyOrphans(ctx context.Context, v vmm) {
	orphans, err := findOrphans(v)
	if err != nil {
		log.G(ctx).WithError(err).Warn("virtual machines without an owner were not looked for")
	}
	for _, name := range orphans {
		l := log.G(ctx).WithField("vm", name)
		if err := destroyed(v.Destroy(name)); err != nil {
			l.WithError(err).Warn("virtual machine without an owner was not destroyed")
			continue
		}
		l.Info("destroyed a virtual machine without an owner")
	}
}

// findOrphans returns what destroyOrphans destroys. A virtual machine exists
// only while a process with its name as an argument does: the loader, bhyve(8)
// as it is started, and bhyve(8) once it has set its title.
func findOrphans(v vmm) ([]string, error) {
	all, err := v.List()
	if err != nil {
		return nil, err
	}
	var ours, args []string
	for _, name := range all {
		if isOurs(name) {
			ours = append(ours, name)
			args = append(args, name, title(name))
		}
	}
	if len(ours) == 0 {
		return nil, nil
	}
	present, err := proc.Arguments(args...)
	if err != nil {
		return nil, err
	}
	var orphans []string
	for _, name := range ours {
		if !present[name] && !present[title(name)] {
			orphans = append(orphans, name)
		}
	}
	return orphans, nil
}

// title is what bhyve(8) sets its arguments to once it runs the guest
// (setproctitle(3)).
func title(vmName string) string { return "bhyve: " + vmName }

// Orphans returns the names of the virtual machines that this project has made
// and that no process owns any more. The next Launch destroys them.
func Orphans() ([]string, error) { return findOrphans(thisHost{vmmapi.ThisHost()}) }
