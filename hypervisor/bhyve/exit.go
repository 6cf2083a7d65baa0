package bhyve

import (
	"fmt"
	"syscall"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
)

// bhyve(8)'s exit statuses (usr.sbin/bhyve/amd64/vmexit.c, vmexit_suspend; the
// rest from its err(3) calls and from what was seen on FreeBSD 15.1).
const (
	exitReset       = 0
	exitPowerOff    = 1 // also: a configuration or checkpoint that it cannot use
	exitHalt        = 2
	exitTripleFault = 3
	exitFailed      = 4 // also: the virtual machine was destroyed under it
	exitSuspended   = 5
	exitUsage       = 64 // EX_USAGE
	exitOS          = 71 // EX_OSERR
)

// ending is all that is known when a bhyve(8) process has ended.
type ending struct {
	Status syscall.WaitStatus
	// Unknown is true if Status is not known.
	Unknown bool
	// Started is true if the guest is known to have run: its vCPUs were seen
	// active, or the agent answered. bhyve answers 1 both for a power-off and
	// for a failure to start, and 0 for a reset and for a request for help.
	Started bool
	// Suspending is true if the machine was to be saved.
	Suspending bool
	// Said is the last line that bhyve wrote to its standard error.
	Said string
	At   time.Time
}

// exit says what the ending means.
func (e ending) exit() hypervisor.Exit {
	reason, what := e.meaning()
	if e.Said != "" {
		what += ": bhyve says: " + e.Said
	}
	return hypervisor.Exit{Reason: reason, Detail: what, At: e.At}
}

func (e ending) meaning() (hypervisor.ExitReason, string) {
	if e.Unknown {
		return hypervisor.ExitError, "it was gone before its exit status was asked for"
	}
	if e.Status.Signaled() {
		return hypervisor.ExitKilled, "signal: " + e.Status.Signal().String()
	}
	code := e.Status.ExitStatus()
	is := func(what string) string { return fmt.Sprintf("exit status %d: %s", code, what) }
	if !e.Started && code <= exitTripleFault {
		return hypervisor.ExitError, is("ended before the guest ran")
	}
	switch code {
	case exitReset:
		return hypervisor.ExitReset, is("the guest restarted")
	case exitPowerOff:
		return hypervisor.ExitPowerOff, is("the guest powered off")
	case exitHalt:
		// Nothing can wake it any more.
		return hypervisor.ExitPowerOff, is("the guest halted")
	case exitTripleFault:
		return hypervisor.ExitReset, is("triple fault")
	case exitFailed:
		return hypervisor.ExitError, is("bhyve gave up, or the virtual machine was destroyed under it")
	case exitSuspended:
		if e.Suspending {
			return hypervisor.ExitPowerOff, is("the machine was saved")
		}
		return hypervisor.ExitError, is("the machine was suspended to a checkpoint by someone else")
	case exitUsage:
		return hypervisor.ExitError, is("bhyve did not understand its configuration")
	case exitOS:
		return hypervisor.ExitError, is("the host refused; a virtual machine whose bhyve was killed cannot be run again")
	}
	return hypervisor.ExitError, is("unexpected")
}
