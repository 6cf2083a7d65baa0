//go:build linux

package agent

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

// system is the System service.
type system struct {
	// powerOff takes the grace of the first PowerOff.
	powerOff chan time.Duration
	// bootID is the boot id if it is known already.
	bootID func() (string, error)
}

func newSystem(bootID func() (string, error)) *system {
	return &system{powerOff: make(chan time.Duration, 1), bootID: bootID}
}

// uptime is the time since the kernel started.
func uptime() (time.Duration, error) {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return 0, fmt.Errorf("uptime: %w", err)
	}
	return time.Duration(up.Nano()), nil
}

// Hello implements agentv1.SystemService.
func (s *system) Hello(_ context.Context, r *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	bootID, err := s.bootID()
	if err != nil {
		return nil, fmt.Errorf("boot id: %w", err)
	}
	up, err := uptime()
	if err != nil {
		return nil, err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	return &agentv1.HelloResponse{
		Nonce:           r.Nonce,
		ProtocolVersion: agentproto.Version,
		BootId:          bootID,
		Uptime:          durationpb.New(up),
		Kernel: strings.Join([]string{
			unix.ByteSliceToString(u.Sysname[:]),
			unix.ByteSliceToString(u.Release[:]),
			unix.ByteSliceToString(u.Version[:]),
			unix.ByteSliceToString(u.Machine[:]),
		}, " "),
		MachineArch: runtime.GOARCH,
	}, nil
}

// PowerOff implements agentv1.SystemService. The work is done by server.run,
// after the reply. While it is under way, another call changes nothing.
func (s *system) PowerOff(_ context.Context, r *agentv1.PowerOffRequest) (*emptypb.Empty, error) {
	var grace time.Duration
	if r.Grace != nil {
		if err := r.Grace.CheckValid(); err != nil {
			return nil, fmt.Errorf("power off: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		grace = r.Grace.AsDuration()
	}
	if grace < 0 {
		return nil, fmt.Errorf("power off: grace of %s: %w", grace, errdefs.ErrInvalidArgument)
	}
	select {
	case s.powerOff <- grace:
	default:
	}
	return &emptypb.Empty{}, nil
}
