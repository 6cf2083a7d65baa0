package bhyve

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
)

func TestExit(t *testing.T) {
	exited := func(code int) syscall.WaitStatus { return syscall.WaitStatus(code << 8) }
	signaled := func(s syscall.Signal) syscall.WaitStatus { return syscall.WaitStatus(s) }
	for _, tc := range []struct {
		name   string
		end    ending
		reason hypervisor.ExitReason
		detail string
	}{
		{"reset", ending{Status: exited(0), Started: true}, hypervisor.ExitReset, "restarted"},
		{"help", ending{Status: exited(0)}, hypervisor.ExitError, "before the guest ran"},
		{"power-off", ending{Status: exited(1), Started: true}, hypervisor.ExitPowerOff, "powered off"},
		{"bad configuration", ending{Status: exited(1), Said: "Unable to x"}, hypervisor.ExitError, "bhyve says: Unable to x"},
		{"halt", ending{Status: exited(2), Started: true}, hypervisor.ExitPowerOff, "halted"},
		{"triple fault", ending{Status: exited(3), Started: true}, hypervisor.ExitReset, "triple fault"},
		{"start error", ending{Status: exited(4)}, hypervisor.ExitError, "gave up"},
		{"run error", ending{Status: exited(4), Started: true}, hypervisor.ExitError, "gave up"},
		{"suspended", ending{Status: exited(5), Started: true}, hypervisor.ExitError, "checkpoint"},
		{"usage", ending{Status: exited(64)}, hypervisor.ExitError, "configuration"},
		{"left over", ending{Status: exited(71)}, hypervisor.ExitError, "cannot be run again"},
		{"unknown", ending{Status: exited(100), Started: true}, hypervisor.ExitError, "exit status 100"},
		{"killed", ending{Status: signaled(syscall.SIGKILL), Started: true}, hypervisor.ExitKilled, "signal: killed"},
	} {
		tc.end.At = time.Unix(1, 0)
		got := tc.end.exit()
		if got.Reason != tc.reason || !strings.Contains(got.Detail, tc.detail) || !got.At.Equal(tc.end.At) {
			t.Errorf("%s: got %+v", tc.name, got)
		}
	}
}
