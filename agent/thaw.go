//go:build linux

package agent

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

const (
	machineIDPath = "/etc/machine-id"
	bootIDPath    = "/proc/sys/kernel/random/boot_id"
	// maxEntropy bounds what one request adds.
	maxEntropy = 4096
)

// kernel is what of the machine a thaw changes. Tests have one of their own:
// they run on somebody's computer.
type kernel interface {
	now() time.Time
	setClock(time.Time) error
	addEntropy([]byte) error
	setMachineID(string) error
	bootID() (string, error)
	hostname() (string, error)
	setHostname(string) error
}

// thawing is the Thaw service.
type thawing struct {
	kernel kernel
	// thawed is true once the machine is like no other, and its boot id may be
	// read.
	thawed atomic.Bool
	// mu is held by the one call that is under way: its steps have an order.
	mu sync.Mutex
}

func newThawing() *thawing { return &thawing{kernel: thisKernel{}} }

// Thaw implements agentv1.ThawService.
func (t *thawing) Thaw(_ context.Context, r *agentv1.ThawRequest) (*agentv1.ThawResponse, error) {
	if err := validateThaw(r); err != nil {
		return nil, fmt.Errorf("thaw: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	resp := &agentv1.ThawResponse{Nonce: r.Nonce, MachineId: r.MachineId}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		// First: the time on the way to here is the only error.
		{"clock", func() error { return t.kernel.setClock(r.Now.AsTime()) }},
		// Before anything is drawn.
		{"entropy", func() error { return t.kernel.addEntropy(r.Entropy) }},
		{"machine id", func() error { return t.kernel.setMachineID(r.MachineId) }},
		{"boot id", func() (err error) {
			if r.Rehearsal {
				return nil
			}
			resp.BootId, err = t.kernel.bootID()
			return err
		}},
		{"host name", func() (err error) {
			if r.Hostname != "" {
				err = t.kernel.setHostname(r.Hostname)
			}
			if err == nil {
				resp.Hostname, err = t.kernel.hostname()
			}
			return err
		}},
	} {
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("thaw: %s: %w", step.name, err)
		}
	}
	up, err := uptime()
	if err != nil {
		return nil, err
	}
	if !r.Rehearsal {
		t.thawed.Store(true)
	}
	resp.Uptime = durationpb.New(up)
	resp.Clock = timestamppb.New(t.kernel.now())
	return resp, nil
}

// Clock implements agentv1.ThawService.
func (t *thawing) Clock(_ context.Context, r *agentv1.ClockRequest) (*agentv1.ClockResponse, error) {
	step := r.Step.AsDuration()
	if r.Step != nil {
		if err := r.Step.CheckValid(); err != nil {
			return nil, fmt.Errorf("clock: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if step != 0 {
		if err := t.kernel.setClock(t.kernel.now().Add(step)); err != nil {
			return nil, fmt.Errorf("clock: step by %s: %w", step, err)
		}
	}
	return &agentv1.ClockResponse{Clock: timestamppb.New(t.kernel.now())}, nil
}

// admit refuses work of a machine that may still be like another one.
func (t *thawing) admit() error {
	if !t.thawed.Load() {
		return fmt.Errorf("the machine has not been thawed: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// knownBootID is the boot id, or nothing as long as reading it would fix it.
func (t *thawing) knownBootID() (string, error) {
	if !t.thawed.Load() {
		return "", nil
	}
	return t.kernel.bootID()
}

var (
	validMachineID = regexp.MustCompile(`^[0-9a-f]{32}$`)
	validHostname  = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?$`)
)

func validateThaw(r *agentv1.ThawRequest) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	// A nil one is the epoch to AsTime.
	if err := r.Now.CheckValid(); err != nil {
		return bad("now: %v", err)
	}
	if n := len(r.Entropy); n < agentproto.MinEntropy || n > maxEntropy {
		return bad("%d bytes of entropy: want %d to %d", n, agentproto.MinEntropy, maxEntropy)
	}
	if !validMachineID.MatchString(r.MachineId) || strings.Trim(r.MachineId, "0") == "" {
		return bad("machine id %q", r.MachineId)
	}
	if r.Hostname != "" && (len(r.Hostname) > maxHostname || !validHostname.MatchString(r.Hostname)) {
		return bad("host name %q", r.Hostname)
	}
	return nil
}

// thisKernel is the one that the agent runs on.
type thisKernel struct{}

func (thisKernel) now() time.Time { return time.Now() }

func (thisKernel) setClock(t time.Time) error {
	now := unix.NsecToTimespec(t.UnixNano())
	return os.NewSyscallError("clock_settime", unix.ClockSettime(unix.CLOCK_REALTIME, &now))
}

// addEntropy credits the bytes in full, and has the generator use them at once
// (random(4)): by itself it would go on with its old key for up to a minute.
func (thisKernel) addEntropy(p []byte) error {
	const path = "/dev/urandom"
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// struct rand_pool_info in linux/random.h.
	info := binary.NativeEndian.AppendUint32(nil, uint32(len(p)*8))
	info = binary.NativeEndian.AppendUint32(info, uint32(len(p)))
	info = append(info, p...)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info[0]))); errno != 0 {
		return os.NewSyscallError("RNDADDENTROPY", errno)
	}
	return os.NewSyscallError("RNDRESEEDCRNG", unix.IoctlSetInt(int(f.Fd()), unix.RNDRESEEDCRNG, 0))
}

func (thisKernel) setMachineID(id string) error {
	// An image whose kernel needs no modules has nothing there.
	if err := os.MkdirAll(filepath.Dir(machineIDPath), 0o755); err != nil {
		return err
	}
	// Not to be read half written.
	const fresh = machineIDPath + ".new"
	if err := os.WriteFile(fresh, []byte(id+"\n"), 0o444); err != nil {
		return err
	}
	return os.Rename(fresh, machineIDPath)
}

func (thisKernel) bootID() (string, error) {
	id, err := os.ReadFile(bootIDPath)
	return strings.TrimSpace(string(id)), err
}

func (thisKernel) hostname() (string, error) { return os.Hostname() }

func (thisKernel) setHostname(name string) error {
	return os.NewSyscallError("sethostname", unix.Sethostname([]byte(name)))
}
