//go:build linux

package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tapInNamespace is a persistent tap in a new network namespace, which the
// result names to every process and which ends with the test.
func tapInNamespace(t *testing.T) (netns, tap string) {
	t.Helper()
	type result struct {
		ns  *os.File
		err error
	}
	made := make(chan result)
	go func() {
		// Never unlocked: the thread ends with its namespace.
		runtime.LockOSThread()
		var r result
		if r.err = unix.Unshare(unix.CLONE_NEWNET); r.err == nil {
			r.ns, r.err = os.Open("/proc/thread-self/ns/net")
		}
		if r.err == nil {
			r.err = netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, Mode: netlink.TUNTAP_MODE_TAP})
		}
		made <- r
	}()
	r := <-made
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { r.ns.Close() })
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), r.ns.Fd()), "eth0"
}

// attached fails the test unless a machine has an interface with the address.
func attached(t *testing.T, m *machine, mac net.HardwareAddr) {
	t.Helper()
	var filters []struct {
		MainMAC string `json:"main-mac"`
	}
	if err := m.execute(testContext(t), "query-rx-filter", map[string]string{"name": "nic-device"}, &filters); err != nil {
		t.Fatal(err)
	}
	if len(filters) != 1 || filters[0].MainMAC != mac.String() {
		t.Errorf("the containers' interfaces: %+v", filters)
	}
}

func TestLaunchWithoutItsTap(t *testing.T) {
	requireQEMU(t)
	cfg, book := guestConfig(t), testBook(t)
	cfg.NIC = &hypervisor.NIC{Tap: "nowhere0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}}
	if _, err := New().Launch(testContext(t), cfg, book); !errdefs.IsNotFound(err) || book.Len() != 0 {
		t.Errorf("got %v, %d receipts", err, book.Len())
	}
}

// plugIn takes the machine's tap to a namespace of the test's, and returns that.
func plugIn(t *testing.T, m *machine) *os.File {
	t.Helper()
	port := m.Port()
	if port == nil {
		t.Fatal("the machine has no port")
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	if err := netns.Move(port.NetNS, port.Tap, ns, "plugged"); err != nil {
		t.Fatal(err)
	}
	return ns
}

// isPlugged says whether a tap is where plugIn has taken it.
func isPlugged(ns *os.File) (is bool, err error) {
	err = netns.Do(ns, func() error {
		_, err := netlink.LinkByName("plugged")
		is = err == nil
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		return err
	})
	return is, err
}
