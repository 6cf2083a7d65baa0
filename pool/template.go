package pool

import (
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/guest"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
)

// Template is what machines are stamped from, and how many are to wait. It is
// stored as JSON.
type Template struct {
	// Name is unique in a pool. It names a file: letters, digits, '_', '.', '-'.
	Name string `json:"name"`
	// GuestDir holds the guest image. Kernel and Initrd are the SHA-256 digests
	// that it had when the template was added; machines are made of no other.
	GuestDir string `json:"guest_dir"`
	Kernel   string `json:"kernel"`
	Initrd   string `json:"initrd"`

	VCPUs      int      `json:"vcpus"`
	MemoryMiB  int      `json:"memory_mib"`
	KernelArgs []string `json:"kernel_args,omitempty"`
	// NIC is true for machines with a network interface beside the link, which
	// the claimant plugs in (hypervisor.Pluggable).
	NIC bool `json:"nic,omitempty"`

	// Low and High are the watermarks of the hot tier: with fewer than Low it is
	// filled up to High.
	Low  int `json:"low"`
	High int `json:"high"`
	// Rehearse has each machine that is booted run a container that does nothing
	// before it is parked or saved. RehearseClones repeats that in those that are
	// restored: it costs each of them memory that they would share otherwise, and
	// helps where guests are emulated, as translated code is not saved.
	Rehearse       bool `json:"rehearse,omitempty"`
	RehearseClones bool `json:"rehearse_clones,omitempty"`
	// Cold keeps a checkpoint of the template.
	Cold bool `json:"cold,omitempty"`
	// IdleTimeout is after how long without a claim the hot tier shrinks to Low.
	// Zero is never.
	IdleTimeout time.Duration `json:"idle_timeout_ns,omitempty"`
}

// portMAC is what all machines of the pool have for their interface's address
// until their claimants tell them another. It goes with no address that package
// network gives out.
var portMAC = net.HardwareAddr{0x02, 0xcb, 0, 0, 0, 1}

// maxHot bounds a watermark: above it is a mistake, not a plan.
const maxHot = 10000

// maxNameLength leaves room in a machine's id for what makes it unique.
const maxNameLength = 48

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// validateName returns errdefs.ErrInvalidArgument for what cannot name a
// template.
func validateName(name string) error {
	if len(name) > maxNameLength || !validName.MatchString(name) {
		return fmt.Errorf("template name %q: want at most %d letters, digits, '_', '.', '-', starting with a letter or digit: %w",
			name, maxNameLength, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Validate checks what can be told from the template alone. Its errors are
// errdefs.ErrInvalidArgument and name the field, or errdefs.ErrNotImplemented for
// what machines of these capabilities cannot have.
func (t Template) Validate(caps hypervisor.Capabilities) error {
	if err := validateName(t.Name); err != nil {
		return err
	}
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("template %s: %s: %w", t.Name, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	switch {
	case !filepath.IsAbs(t.GuestDir):
		return invalid("guest directory %q: want an absolute path", t.GuestDir)
	case t.VCPUs < 1 || t.VCPUs > caps.MaxVCPUs:
		return invalid("%d vCPUs: want 1 to %d", t.VCPUs, caps.MaxVCPUs)
	case t.MemoryMiB < hypervisor.MinMemoryMiB:
		return invalid("%d MiB of memory: want at least %d", t.MemoryMiB, hypervisor.MinMemoryMiB)
	case t.Low < 0 || t.High > maxHot || t.Low > t.High:
		return invalid("watermarks %d and %d: want 0 <= low <= high <= %d", t.Low, t.High, maxHot)
	case t.IdleTimeout < 0:
		return invalid("idle timeout %v", t.IdleTimeout)
	}
	if t.NIC && !caps.Plug {
		return fmt.Errorf("template %s: a network interface that is plugged in later: %w", t.Name, errdefs.ErrNotImplemented)
	}
	return nil
}

// Shape is what a claim is compared with.
func (t Template) Shape() *poolv1.Shape {
	return &poolv1.Shape{
		Kernel: t.Kernel, Initrd: t.Initrd,
		Vcpus: uint32(t.VCPUs), MemoryMib: uint32(t.MemoryMiB),
		KernelArgs: t.KernelArgs, Nic: t.NIC,
	}
}

// image opens the guest image, if it still is the one of the template.
func (t Template) image() (*guest.Image, error) {
	image, err := guest.Open(t.GuestDir)
	if err != nil {
		return nil, err
	}
	if m := image.Manifest; m.Kernel.SHA256 != t.Kernel || m.Initrd.SHA256 != t.Initrd {
		return nil, fmt.Errorf("template %s: the guest image in %s is another one by now; add the template again: %w",
			t.Name, t.GuestDir, errdefs.ErrFailedPrecondition)
	}
	return image, nil
}

// sameMachines says whether machines made of a can be handed out as b's.
func sameMachines(a, b Template) bool { return a.Shape().Key() == b.Shape().Key() }

// rehearsal is what a machine does before it is anybody's. What it has done once,
// its claimant does not do for the first time: the code of agent, kernel and
// runtime is in memory and, where it is emulated, translated.
type rehearsal int

const (
	// noRehearsal is for a machine that somebody waits for.
	noRehearsal rehearsal = iota
	// rehearseThaw is what every claimant does.
	rehearseThaw
	// rehearseContainer is one that does nothing, after that.
	rehearseContainer
)

// rehearses says what a machine made of c, or booted if that is nil, does before
// it waits.
func (t Template) rehearses(c *checkpoint) rehearsal {
	if c == nil && t.Rehearse || c != nil && t.RehearseClones {
		return rehearseContainer
	}
	return rehearseThaw
}

func (t Template) memory() uint64 { return uint64(t.MemoryMiB) << 20 }

func (t Template) proto() *poolv1.Template {
	return &poolv1.Template{
		Name: t.Name, Shape: t.Shape(), GuestDir: t.GuestDir,
		Low: uint32(t.Low), High: uint32(t.High), Cold: t.Cold, Rehearse: t.Rehearse, RehearseClones: t.RehearseClones,
		IdleTimeout: durationpb.New(t.IdleTimeout),
	}
}

// templateOf reads everything but the image's digests.
func templateOf(m *poolv1.Template) Template {
	s := m.GetShape()
	return Template{
		Name: m.GetName(), GuestDir: m.GetGuestDir(),
		VCPUs: int(s.GetVcpus()), MemoryMiB: int(s.GetMemoryMib()),
		KernelArgs: slices.Clone(s.GetKernelArgs()), NIC: s.GetNic(),
		Low: int(m.GetLow()), High: int(m.GetHigh()), Cold: m.GetCold(), Rehearse: m.GetRehearse(), RehearseClones: m.GetRehearseClones(),
		IdleTimeout: m.GetIdleTimeout().AsDuration(),
	}
}
