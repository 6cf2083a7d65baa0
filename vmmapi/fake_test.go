package vmmapi

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// fakeLibrary is a scripted libvmmapi: machines that hold what was set in
// them, and errors to be answered by function. It fails the test for what the
// real one would crash on.
type fakeLibrary struct {
	t *testing.T

	mu sync.Mutex
	// machines are the VMs that exist.
	machines map[string]*fakeVM
	// open handles.
	handles map[handle]*fakeVM
	// errs are the errors that a function answers next, one for each call.
	errs map[string][]error
	// calls are the names of the functions called.
	calls []string
	// inStatName detects overlapping calls.
	inStatName bool
	// duringCall runs inside of the named function, without the lock.
	duringCall map[string]func()
	maxcpu     int
	noDestroy  bool
}

type fakeVM struct {
	name     string
	memory   []byte
	wired    bool
	regs     map[string]uint64
	descs    map[string]Descriptor
	caps     map[string]int
	active   []int
	topology Topology
	clock    time.Time
}

const fakeMaxVCPUs = 4

// newFake is a host over a fake, with /dev/vmmctl.
func newFake(t *testing.T) (*Host, *fakeLibrary) {
	t.Helper()
	f := &fakeLibrary{
		t: t, machines: map[string]*fakeVM{}, handles: map[handle]*fakeVM{},
		errs: map[string][]error{}, duringCall: map[string]func(){}, maxcpu: fakeMaxVCPUs,
	}
	t.Cleanup(func() {
		if n := len(f.handles); n != 0 {
			t.Errorf("%d handles were not closed", n)
		}
	})
	dir := t.TempDir()
	control := filepath.Join(dir, "vmmctl")
	if err := os.WriteFile(control, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return &Host{lib: f, control: control, machines: filepath.Join(dir, "vmm")}, f
}

// enter records the call and answers a scripted error.
func (f *fakeLibrary) enter(fn string) error {
	f.mu.Lock()
	f.calls = append(f.calls, fn)
	var err error
	if q := f.errs[fn]; len(q) > 0 {
		err, f.errs[fn] = q[0], q[1:]
	}
	during := f.duringCall[fn]
	f.mu.Unlock()
	if during != nil {
		during()
	}
	return err
}

// vm is what h refers to. A handle that was freed fails the test.
func (f *fakeLibrary) vm(h handle) *fakeVM {
	f.mu.Lock()
	defer f.mu.Unlock()
	v := f.handles[h]
	if v == nil {
		f.t.Errorf("a call with a handle that is not open: %p", h)
		return &fakeVM{}
	}
	return v
}

func (f *fakeLibrary) create(name string) error {
	if err := f.enter("create"); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.machines[name] != nil {
		return syscall.EEXIST
	}
	f.machines[name] = &fakeVM{
		name: name, regs: map[string]uint64{}, descs: map[string]Descriptor{}, caps: map[string]int{},
		topology: Topology{1, 1, 1, fakeMaxVCPUs},
	}
	return nil
}

func (f *fakeLibrary) open(name string) (handle, error) {
	if err := f.enter("open"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	v := f.machines[name]
	if v == nil {
		return nil, syscall.ENOENT
	}
	h := handle(new(int64))
	f.handles[h] = v
	return h, nil
}

func (f *fakeLibrary) close(h handle) {
	f.vm(h)
	_ = f.enter("close")
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.handles, h)
}

func (f *fakeLibrary) destroy(h handle) {
	v := f.vm(h)
	_ = f.enter("destroy")
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.noDestroy {
		delete(f.machines, v.name)
	}
	delete(f.handles, h)
}

func (f *fakeLibrary) reinit(h handle) error { f.vm(h); return f.enter("reinit") }

func (f *fakeLibrary) suspend(h handle, how SuspendHow) error {
	f.vm(h)
	return f.enter(fmt.Sprintf("suspend %d", how))
}

func (f *fakeLibrary) systemMemory(h handle) (uint64, error) {
	return uint64(len(f.vm(h).memory)), f.enter("systemMemory")
}

func (f *fakeLibrary) setupMemory(h handle, size uint64, wired bool) error {
	v := f.vm(h)
	if err := f.enter("setupMemory"); err != nil {
		return err
	}
	if v.memory != nil && v.wired != wired {
		return syscall.EEXIST
	}
	v.memory, v.wired = make([]byte, size), wired
	return nil
}

func (f *fakeLibrary) memorySizes(h handle) (low, high uint64) {
	return uint64(len(f.vm(h).memory)), 0
}

func (f *fakeLibrary) mapGPA(h handle, gpa, n uint64) unsafe.Pointer {
	v := f.vm(h)
	if size := uint64(len(v.memory)); gpa >= size || n > size || gpa+n > size {
		return nil
	}
	return unsafe.Pointer(&v.memory[gpa])
}

func (f *fakeLibrary) key(vcpu int, what any) string { return fmt.Sprintf("%d %v", vcpu, what) }

func (f *fakeLibrary) setRegister(h handle, vcpu int, r Register, v uint64) error {
	f.vm(h).regs[f.key(vcpu, r)] = v
	return f.enter("setRegister")
}

func (f *fakeLibrary) register(h handle, vcpu int, r Register) (uint64, error) {
	return f.vm(h).regs[f.key(vcpu, r)], f.enter("register")
}

func (f *fakeLibrary) setDescriptor(h handle, vcpu int, r Register, d Descriptor) error {
	f.vm(h).descs[f.key(vcpu, r)] = d
	return f.enter("setDescriptor")
}

func (f *fakeLibrary) descriptor(h handle, vcpu int, r Register) (Descriptor, error) {
	return f.vm(h).descs[f.key(vcpu, r)], f.enter("descriptor")
}

func (f *fakeLibrary) setCapability(h handle, vcpu int, c Capability, v int) error {
	f.vm(h).caps[f.key(vcpu, c)] = v
	return f.enter("setCapability")
}

func (f *fakeLibrary) capability(h handle, vcpu int, c Capability) (int, error) {
	return f.vm(h).caps[f.key(vcpu, c)], f.enter("capability")
}

func (f *fakeLibrary) resetVCPU(h handle, vcpu int) error {
	f.vm(h)
	return f.enter(fmt.Sprintf("resetVCPU %d", vcpu))
}

func (f *fakeLibrary) cpus(h handle, set cpuSet) ([]int, error) {
	v := f.vm(h)
	err := f.enter(fmt.Sprintf("cpus %d", set))
	if set != activeCPUs {
		return nil, err
	}
	return slices.Clone(v.active), err
}

func (f *fakeLibrary) setTopology(h handle, t Topology) error {
	f.vm(h).topology = Topology{t.Sockets, t.Cores, t.Threads, fakeMaxVCPUs}
	return f.enter("setTopology")
}

func (f *fakeLibrary) topology(h handle) (Topology, error) {
	return f.vm(h).topology, f.enter("topology")
}

// fakeStats: the order is not alphabetical, as little as the kernel's is.
var fakeStats = []string{"vcpu total runtime", "Resident memory", "total number of vm exits"}

func (f *fakeLibrary) stats(h handle, vcpu int) ([]uint64, time.Time, error) {
	f.vm(h)
	return []uint64{uint64(100 + vcpu), 200, 300}, time.Unix(1000, 0), f.enter("stats")
}

func (f *fakeLibrary) statName(h handle, index int) (string, bool) {
	f.vm(h)
	f.mu.Lock()
	if f.inStatName {
		f.t.Error("two calls of vm_get_stat_desc at once")
	}
	f.inStatName = true
	f.mu.Unlock()
	_ = f.enter("statName")
	f.mu.Lock()
	f.inStatName = false
	f.mu.Unlock()
	if index >= len(fakeStats) {
		return "", false
	}
	return fakeStats[index], true
}

func (f *fakeLibrary) setClock(h handle, t time.Time) error {
	f.vm(h).clock = t
	return f.enter("setClock")
}

func (f *fakeLibrary) clock(h handle) (time.Time, error) { return f.vm(h).clock, f.enter("clock") }

func (f *fakeLibrary) restoreTime(h handle) error { f.vm(h); return f.enter("restoreTime") }

func (f *fakeLibrary) maxVCPUs() (int, error) { return f.maxcpu, f.enter("maxVCPUs") }
