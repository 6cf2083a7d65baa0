//go:build linux

package qemu

import (
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestArguments(t *testing.T) {
	base := spec{
		Config: hypervisor.Config{
			ID: "sandbox-1", VCPUs: 2, MemoryMiB: 512,
			Kernel: "/image/vmlinux", Initrd: "/image/initrd, with a comma", Cmdline: []string{"first=1", "second"},
		},
		uuid: "3f8e4c1e-0e4e-4d0e-9d4b-6f6d1c9f2a11",
		root: "/machine/root", qemu: version{7, 2},
	}
	hardware := base
	hardware.kvm = true
	hardware.cid = 70000
	hardware.qemu = version{10, 0}
	hardware.NIC = &hypervisor.NIC{Tap: "tap7", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}}
	hardware.drives = []drive{{fd: 6, readOnly: true}, {fd: 7, device: true}}
	for name, s := range map[string]spec{"tcg-tap": base, "kvm-vsock-nic-disks": hardware} {
		args, err := s.args()
		if err != nil {
			t.Fatal(err)
		}
		// An option and its value a line.
		var b strings.Builder
		for _, a := range args {
			if b.Len() > 0 {
				b.WriteString(map[bool]string{true: "\n", false: " "}[strings.HasPrefix(a, "-")])
			}
			b.WriteString(a)
		}
		got := b.String() + "\n"
		golden := filepath.Join("testdata", name+".args")
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: got\n%swant\n%s(go test -update rewrites it)", golden, got, want)
		}
	}
}

func TestVirtualizes(t *testing.T) {
	for _, c := range []struct {
		cpuinfo string
		want    bool
	}{
		{"processor\t: 0\nflags\t\t: fpu vmx sse\n", true},
		{"processor\t: 0\nflags\t\t: fpu svm\n", true},
		{"processor\t: 0\nflags\t\t: fpu vmmcall svm_lock\nvmx flags\t: vnmi\n", false},
		{"Features\t: vmx\n", false},
		{"", false},
	} {
		if got := virtualizes(strings.NewReader(c.cpuinfo)); got != c.want {
			t.Errorf("%q: %v, want %v", c.cpuinfo, got, c.want)
		}
	}
}

func TestClassify(t *testing.T) {
	exited := func(code int) syscall.WaitStatus { return syscall.WaitStatus(code << 8) }
	killed := syscall.WaitStatus(syscall.SIGKILL)
	for _, c := range []struct {
		shutdown string
		status   syscall.WaitStatus
		said     string
		reason   hypervisor.ExitReason
		detail   string
	}{
		{"guest-shutdown", exited(0), "", hypervisor.ExitPowerOff, "guest-shutdown"},
		{"host-qmp-quit", exited(0), "", hypervisor.ExitPowerOff, "host-qmp-quit"},
		{"guest-reset", exited(0), "", hypervisor.ExitReset, "guest-reset"},
		{"guest-panic", exited(0), "", hypervisor.ExitReset, "guest-panic"},
		{"host-signal", exited(0), "terminating on signal 15", hypervisor.ExitKilled, "host-signal; terminating on signal 15"},
		{"", killed, "", hypervisor.ExitKilled, "signal: killed"},
		{"guest-shutdown", killed, "", hypervisor.ExitKilled, "signal: killed"},
		{"", exited(1), "no memory", hypervisor.ExitError, "exit status 1; no memory"},
		{"", exited(0), "", hypervisor.ExitError, "exit status 0 without a word on the monitor"},
		{"host-error", exited(0), "", hypervisor.ExitError, "host-error"},
	} {
		t.Run(fmt.Sprint(c.shutdown, c.status), func(t *testing.T) {
			got := classify(c.shutdown, c.status, true, c.said)
			if got.Reason != c.reason || got.Detail != c.detail {
				t.Errorf("%q, %q; want %q, %q", got.Reason, got.Detail, c.reason, c.detail)
			}
		})
	}
	// Of a process that was adopted.
	if got := classify("guest-shutdown", 0, false, ""); got.Reason != hypervisor.ExitPowerOff {
		t.Errorf("%+v", got)
	}
	if got := classify("", 0, false, ""); got.Reason != hypervisor.ExitError || !strings.Contains(got.Detail, "not known") {
		t.Errorf("%+v", got)
	}
}

func TestSocketInADirectoryWithALongName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 40))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := socket{dir}
	// Left by a machine that was killed: not in the way.
	for range 2 {
		l, err := s.listen()
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	conn, err := s.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	for range 2 {
		if err := s.remove(); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v (%v)", left, err)
	}
}
