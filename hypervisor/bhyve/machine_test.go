package bhyve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
)

// longer than anything here takes on a busy machine.
const patience = 20 * time.Second

// fakeVMM is vmm(4) with the one virtual machine that a script stands for: it
// exists once the script has made the file "loaded" in dir, its vCPU is active
// once there is "active". A power-off makes "off".
type fakeVMM struct {
	dir string

	// cannotSave is a kernel without it; saveFails is a bhyve that refuses to.
	cannotSave, saveFails bool
	// unpinned is the process that may run on all CPUs.
	unpinned int

	mu        sync.Mutex
	others    []string
	destroyed []string
}

func (v *fakeVMM) SupportsCheckpoint() (bool, error)       { return !v.cannotSave, nil }
func (v *fakeVMM) build() (monitor, cpu string, err error) { return "bhyve 15.1", "EPYC", nil }

func (v *fakeVMM) unpin(_ context.Context, pid int) error { v.unpinned = pid; return nil }

// suspend writes what bhyve does, and tells the script.
func (v *fakeVMM) suspend(_ context.Context, _, file string) error {
	if v.saveFails {
		return os.WriteFile(file, []byte("half"), 0o600)
	}
	meta := `{"basic metadata": {"memsize": 268435456}, "devices": [{"device": "x", "size": 3, "file_offset": 4}]}`
	for suffix, data := range map[string]string{"": "memory", ".kern": "kernel.", ".meta": meta} {
		if err := os.WriteFile(file+suffix, []byte(data), 0o600); err != nil {
			return err
		}
	}
	if err := os.Truncate(file, 256<<20); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(v.dir, "saved"), nil, 0o600)
}

func (v *fakeVMM) has(file string) bool {
	_, err := os.Stat(filepath.Join(v.dir, file))
	return err == nil
}

func (v *fakeVMM) MaxVCPUs() (int, error) { return 4, nil }

func (v *fakeVMM) List() ([]string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.others), nil
}

func (v *fakeVMM) Destroy(name string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if slices.Contains(v.others, name) || os.Remove(filepath.Join(v.dir, "loaded")) == nil {
		v.destroyed = append(v.destroyed, name)
		return nil
	}
	return fmt.Errorf("%s: %w", name, errdefs.ErrNotFound)
}

func (v *fakeVMM) active(name string) (bool, error) {
	if !v.has("loaded") {
		return false, fmt.Errorf("%s: %w", name, errdefs.ErrNotFound)
	}
	return v.has("active"), nil
}

func (v *fakeVMM) powerOff(name string) error {
	if !v.has("loaded") {
		return fmt.Errorf("%s: %w", name, errdefs.ErrNotFound)
	}
	return os.WriteFile(filepath.Join(v.dir, "off"), nil, 0o600)
}

func (v *fakeVMM) usage(string) (vmUsage, error) { return vmUsage{Exits: 4711, Resident: 1 << 20}, nil }

// fakeLink is a link whose guest answers nothing.
type fakeLink struct{ closed, disowned int }

func (*fakeLink) Tap() string  { return "tap4711" }
func (*fakeLink) Mark() string { return "a link" }
func (*fakeLink) Dial(ctx context.Context, _ uint32) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
func (l *fakeLink) Close() error  { l.closed++; return nil }
func (l *fakeLink) Disown() error { l.disowned++; return nil }

// fakePort is the tap of an interface that leads nowhere.
type fakePort struct{ fakeLink }

func (*fakePort) Tap() string  { return "tap4712" }
func (*fakePort) Mark() string { return "a port" }

type rig struct {
	Backend
	vmm  *fakeVMM
	link *fakeLink
	port *fakePort
	cfg  hypervisor.Config
	book *receipt.Book
}

// newRig is a backend whose processes are shell scripts. A script is called as
// the loader is: $1 the virtual machine's name, $3 the machine's directory.
func newRig(t *testing.T, script string) *rig {
	t.Helper()
	dir := t.TempDir()
	kernel := filepath.Join(dir, "kernel")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	book, err := receipt.Open(filepath.Join(dir, "receipts"))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{vmm: &fakeVMM{dir: dir}, link: &fakeLink{}, port: &fakePort{}, book: book}
	r.cfg = hypervisor.Config{ID: "a.1", Dir: dir, VCPUs: 2, MemoryMiB: 256, Kernel: kernel, Initrd: kernel, Cmdline: []string{"last=1"}}
	r.Backend = Backend{
		vmm:      r.vmm,
		openLink: func(context.Context, *receipt.Book) (tapLink, error) { return r.link, nil },
		adoptLink: func(tap, mark string, _ *receipt.Book) (tapLink, error) {
			if tap != r.link.Tap() || mark != r.link.Mark() {
				return nil, fmt.Errorf("tap %s %q", tap, mark)
			}
			return r.link, nil
		},
		openPort: func(context.Context, *receipt.Book) (tap, error) { return r.port, nil },
		adoptPort: func(name, mark string, _ *receipt.Book) (tap, error) {
			if name != r.port.Tap() || mark != r.port.Mark() {
				return nil, fmt.Errorf("port %s %q", name, mark)
			}
			return r.port, nil
		},
		loader: func() ([]string, error) { return []string{"/bin/sh", "-c", script, "loader"}, nil },
	}
	return r
}

func (r *rig) launch(t *testing.T) hypervisor.Machine {
	t.Helper()
	m, err := r.Launch(t.Context(), r.cfg, r.book)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Destroy(context.Background()) })
	return m
}

// clean fails the test if anything of the machine is left.
func (r *rig) clean(t *testing.T) {
	t.Helper()
	if r.cfg.NIC != nil && r.cfg.NIC.Tap == "" && r.port.closed == 0 {
		t.Error("left: the port")
	}
	if r.book.Len() != 0 || r.link.closed == 0 || r.vmm.has("loaded") || r.vmm.has(guestFile) || r.vmm.has(configFile) {
		t.Errorf("left: %d receipts, link closed %d times, virtual machine %v, files %v %v",
			r.book.Len(), r.link.closed, r.vmm.has("loaded"), r.vmm.has(guestFile), r.vmm.has(configFile))
	}
}

func ended(t *testing.T, m hypervisor.Machine) hypervisor.Exit {
	t.Helper()
	select {
	case <-m.Done():
	case <-time.After(patience):
		t.Fatal("it still runs")
	}
	return m.Exit()
}

// plugged has the machine's interface lead nowhere.
func (r *rig) plugged() { r.cfg.NIC = &hypervisor.NIC{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}} }

// running is a guest that boots and waits: its input never ends.
const running = `echo booting; : >"$3"/loaded; : >"$3"/active; read line; exit 9`

func TestLaunchAndDestroy(t *testing.T) {
	r := newRig(t, running)
	r.cfg.NIC = &hypervisor.NIC{Tap: "tap12", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}}
	m := r.launch(t)
	conf, err := os.ReadFile(filepath.Join(r.cfg.Dir, configFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"name=csb-a.1", "memory.size=256M", "cpus=2", "pci.0.2.0.backend=tap4711", "pci.0.2.0.mac=02:62:68:79:00:02", "pci.0.3.0.backend=tap12", "pci.0.3.0.mac=02:00:00:00:00:07", "acpi_tables=true", "lpc.com1.path=stdio"} {
		if !slices.Contains(strings.Split(string(conf), "\n"), line) {
			t.Errorf("no %s in\n%s", line, conf)
		}
	}
	u, err := m.(hypervisor.Measurer).Usage(t.Context())
	if err != nil || u.VMExits != 4711 || u.GuestPrivateDirty != 1<<20 || u.RSS == 0 {
		t.Errorf("usage %+v, %v", u, err)
	}
	// One that is parked is not asked what could wait for ever.
	if err := m.(hypervisor.Parker).Park(t.Context()); err != nil {
		t.Fatal(err)
	}
	if u, err := m.(hypervisor.Measurer).Usage(t.Context()); err != nil || u.VMExits != 0 || u.RSS == 0 {
		t.Errorf("usage of a parked machine: %+v, %v", u, err)
	}
	// The process and the virtual machine; the tap's is the link's to write.
	if r.book.Len() != 2 {
		t.Errorf("%d receipts", r.book.Len())
	}
	for range 2 {
		if err := m.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if exit := m.Exit(); exit.Reason != hypervisor.ExitKilled {
		t.Errorf("exit %+v", exit)
	}
	if !r.vmm.has("off") {
		t.Error("it was killed without its vCPUs having been woken")
	}
	if got := string(m.ConsoleTail()); got != "booting\n" {
		t.Errorf("console %q", got)
	}
	if err := m.PowerOff(t.Context()); !errors.Is(err, hypervisor.ErrExited) {
		t.Errorf("power off what is gone: %v", err)
	}
	if _, err := m.Dial(t.Context(), 1); !errors.Is(err, hypervisor.ErrExited) {
		t.Errorf("dial what is gone: %v", err)
	}
	r.clean(t)
}

func TestPowerOff(t *testing.T) {
	r := newRig(t, `: >"$3"/loaded; : >"$3"/active; until [ -e "$3"/off ]; do :; done; exit 1`)
	m := r.launch(t)
	if err := m.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exit := ended(t, m); exit.Reason != hypervisor.ExitPowerOff {
		t.Errorf("exit %+v", exit)
	}
	// Its memory is given back at once, whether or not it is destroyed.
	if r.vmm.has("loaded") {
		t.Error("the virtual machine outlived its bhyve")
	}
	if err := m.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.clean(t)
}

func TestReceiptsUndoAMachine(t *testing.T) {
	r := newRig(t, running)
	m := r.launch(t)
	// The virtual machine's receipt asks the real vmm, which knows none of that
	// name, or is not there.
	err := r.book.UndoAll(t.Context())
	if err != nil && (!errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "csb-a.1")) {
		t.Errorf("undo: %v", err)
	}
	if exit := ended(t, m); exit.Reason != hypervisor.ExitKilled {
		t.Errorf("exit %+v", exit)
	}
	if err := (vmReceipt{"web"}).Undo(t.Context()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("undo of somebody else's: %v", err)
	}
}

func TestLaunchFails(t *testing.T) {
	for name, tc := range map[string]struct {
		script string
		want   []string
	}{
		"the guest cannot be loaded": {`echo "load csb-a.1: no kernel" >&2; exit 1`, []string{"before the guest ran", "no kernel"}},
		"bhyve refuses":              {`: >"$3"/loaded; echo "Unable to setup memory" >&2; exit 4`, []string{"exit status 4", "Unable to setup memory"}},
		"bhyve is killed":            {`: >"$3"/loaded; kill -9 $$`, []string{"signal: killed"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, tc.script)
			_, err := r.Launch(t.Context(), r.cfg, r.book)
			var failed *hypervisor.LaunchError
			if !errors.As(err, &failed) || failed.Phase != "start" {
				t.Fatalf("got %v", err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
			r.clean(t)
		})
	}
	t.Run("the caller gives up", func(t *testing.T) {
		r := newRig(t, `: >"$3"/loaded; read line`)
		gaveUp := errors.New("gave up")
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			for !r.vmm.has("loaded") && t.Context().Err() == nil {
			}
			cancel(gaveUp)
		}()
		if _, err := r.Launch(ctx, r.cfg, r.book); !errors.Is(err, gaveUp) {
			t.Errorf("got %v", err)
		}
		r.clean(t)
	})
	t.Run("no kernel", func(t *testing.T) {
		r := newRig(t, running)
		r.cfg.Kernel += "x"
		if _, err := r.Launch(t.Context(), r.cfg, r.book); !errdefs.IsNotFound(err) || r.book.Len() != 0 {
			t.Errorf("got %v, %d receipts", err, r.book.Len())
		}
	})
	t.Run("no disk", func(t *testing.T) {
		r := newRig(t, running)
		r.cfg.Disks = []hypervisor.Disk{{Path: filepath.Join(r.cfg.Dir, "none")}}
		if _, err := r.Launch(t.Context(), r.cfg, r.book); !errdefs.IsNotFound(err) || r.book.Len() != 0 {
			t.Errorf("got %v, %d receipts", err, r.book.Len())
		}
	})
	t.Run("a tap where there are no namespaces", func(t *testing.T) {
		r := newRig(t, running)
		r.cfg.NIC = &hypervisor.NIC{Tap: "tap12", NetNS: "/run/netns/x", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}}
		if _, err := r.Launch(t.Context(), r.cfg, r.book); !errdefs.IsInvalidArgument(err) || r.book.Len() != 0 {
			t.Errorf("got %v, %d receipts", err, r.book.Len())
		}
	})
	t.Run("no link", func(t *testing.T) {
		r := newRig(t, running)
		r.openLink = func(context.Context, *receipt.Book) (tapLink, error) { return nil, errdefs.ErrFailedPrecondition }
		if _, err := r.Launch(t.Context(), r.cfg, r.book); !errdefs.IsFailedPrecondition(err) || r.book.Len() != 0 {
			t.Errorf("got %v, %d receipts", err, r.book.Len())
		}
	})
}

func TestOrphansAreDestroyed(t *testing.T) {
	owner := newRig(t, running)
	owner.cfg.ID = "owned"
	owner.launch(t)

	r := newRig(t, running)
	r.vmm.others = []string{"csb-orphan-of-a-test", "freebsd", vmName("owned")}
	r.launch(t)
	if !slices.Equal(r.vmm.destroyed, []string{"csb-orphan-of-a-test"}) {
		t.Errorf("destroyed %v", r.vmm.destroyed)
	}
}

func TestBecome(t *testing.T) {
	for _, args := range [][]string{nil, {"shim"}, {"shim", "start"}, {"shim", "-id", loadCommand}} {
		if handled, err := Become(args); handled || err != nil {
			t.Errorf("%q: %v, %v", args, handled, err)
		}
	}
	for name, args := range map[string][]string{
		"called by hand":  {"shim", loadCommand},
		"nothing to load": {"shim", loadCommand, "csb-a", "mark", t.TempDir()},
	} {
		if handled, err := Become(args); !handled || err == nil {
			t.Errorf("%s: %v, %v", name, handled, err)
		}
	}
	// What the owner writes is what the loader reads.
	dir := t.TempDir()
	kernel := filepath.Join(dir, "nowhere")
	g := guestOf(hypervisor.Config{ID: "a", VCPUs: 1, MemoryMiB: 128, Kernel: kernel, Initrd: kernel}, vmName("a"), testUUID, "tap1")
	if err := prepare(dir, g); err != nil {
		t.Fatal(err)
	}
	if _, err := Become([]string{"shim", loadCommand, "csb-a", "mark", dir}); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), kernel) {
		t.Errorf("got %v, want that the kernel is missing", err)
	}
	if err := errors.Join(unprepare(dir), unprepare(dir)); err != nil {
		t.Error(err)
	}
}
