package bhyve

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/vmmapi"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/vmmapi/linuxboot"
	"github.com/containerd/errdefs"
)

// recorder is a vCPU that keeps what was set and in which order.
type recorder struct {
	regs   map[vmmapi.Register]uint64
	descs  map[vmmapi.Register]vmmapi.Descriptor
	order  []vmmapi.Register
	failAt vmmapi.Register
}

var errRefused = errors.New("refused")

func (r *recorder) SetRegister(reg vmmapi.Register, v uint64) error {
	if reg == r.failAt {
		return errRefused
	}
	r.regs[reg], r.order = v, append(r.order, reg)
	return nil
}

func (r *recorder) SetDescriptor(reg vmmapi.Register, d vmmapi.Descriptor) error {
	if reg == r.failAt {
		return errRefused
	}
	r.descs[reg] = d
	return nil
}

func TestSetCPU(t *testing.T) {
	seg := func(n uint32) linuxboot.Segment {
		return linuxboot.Segment{Selector: uint16(n), Base: uint64(n) << 8, Limit: n + 1, Access: n + 2}
	}
	s := linuxboot.CPU{
		RIP: 1, RSP: 2, RSI: 3, RFLAGS: 4, CR0: 5, CR3: 6, CR4: 7, EFER: 8,
		CS: seg(10), DS: seg(20), ES: seg(30), SS: seg(40), FS: seg(50), GS: seg(60), TR: seg(70), LDTR: seg(80),
		GDTR: linuxboot.Table{Base: 90, Limit: 91}, IDTR: linuxboot.Table{Base: 92, Limit: 93},
	}
	r := &recorder{regs: map[vmmapi.Register]uint64{}, descs: map[vmmapi.Register]vmmapi.Descriptor{}}
	if err := setCPU(r, s); err != nil {
		t.Fatal(err)
	}
	for reg, want := range map[vmmapi.Register]uint64{
		vmmapi.RIP: 1, vmmapi.RSP: 2, vmmapi.RSI: 3, vmmapi.RFLAGS: 4, vmmapi.CR0: 5, vmmapi.CR3: 6, vmmapi.CR4: 7, vmmapi.EFER: 8,
		vmmapi.CS: 10, vmmapi.DS: 20, vmmapi.ES: 30, vmmapi.SS: 40, vmmapi.FS: 50, vmmapi.GS: 60, vmmapi.TR: 70, vmmapi.LDTR: 80,
	} {
		if got, ok := r.regs[reg]; !ok || got != want {
			t.Errorf("%s is %d, want %d", reg, got, want)
		}
		if reg < vmmapi.CS || reg > vmmapi.IDTR {
			continue
		}
		n := uint32(want)
		if got := r.descs[reg]; got != (vmmapi.Descriptor{Base: uint64(n) << 8, Limit: n + 1, Access: n + 2}) {
			t.Errorf("descriptor of %s is %+v", reg, got)
		}
	}
	if got := r.descs[vmmapi.GDTR]; got != (vmmapi.Descriptor{Base: 90, Limit: 91}) {
		t.Errorf("GDTR is %+v", got)
	}
	if got := r.descs[vmmapi.IDTR]; got != (vmmapi.Descriptor{Base: 92, Limit: 93}) {
		t.Errorf("IDTR is %+v", got)
	}
	at := map[vmmapi.Register]int{}
	for i, reg := range r.order {
		at[reg] = i
	}
	if at[vmmapi.EFER] < at[vmmapi.CR0] || at[vmmapi.EFER] < at[vmmapi.CR4] {
		t.Errorf("EFER before CR0 or CR4: %v", r.order)
	}

	for _, reg := range []vmmapi.Register{vmmapi.CS, vmmapi.LDTR, vmmapi.GDTR, vmmapi.EFER, vmmapi.RIP} {
		r := &recorder{regs: map[vmmapi.Register]uint64{}, descs: map[vmmapi.Register]vmmapi.Descriptor{}, failAt: reg}
		if err := setCPU(r, s); !errors.Is(err, errRefused) {
			t.Errorf("%s refused: %v", reg, err)
		}
	}
}

// TestNames: every id makes a name that a virtual machine can have, different
// ids different names, and names of others are not taken for ours.
func TestNames(t *testing.T) {
	seen := map[string]string{}
	for n := 1; n <= hypervisor.MaxIDLength; n++ {
		for _, id := range []string{strings.Repeat("x", n), strings.Repeat("x", n-1) + "y"} {
			name := vmName(id)
			if err := vmmapi.ValidateName(name); err != nil || !isOurs(name) {
				t.Errorf("id %s: %s, %v", id, name, err)
			}
			if other, ok := seen[name]; ok && other != id {
				t.Errorf("ids %s and %s are both named %s", id, other, name)
			}
			seen[name] = id
		}
	}
	if got := vmName("web.1"); got != "csb-web.1" {
		t.Errorf("got %s", got)
	}
	for _, name := range []string{"freebsd15", "csb-", "xcsb-a", ""} {
		if isOurs(name) {
			t.Errorf("%q is taken for ours", name)
		}
	}
}

func TestLoadMissingFile(t *testing.T) {
	g := guest{config: least(), Kernel: filepath.Join(t.TempDir(), "vmlinuz"), Initrd: os.DevNull}
	if err := load(vmmapi.ThisHost(), g); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestLaunchWithoutLibrary(t *testing.T) {
	if _, err := New().Capabilities(t.Context()); err == nil {
		t.Skip("libvmmapi is linked in, and there is vmm")
	}
	if _, err := New().Launch(t.Context(), hypervisor.Config{ID: "a"}, nil); !errdefs.IsNotImplemented(err) && !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
}
