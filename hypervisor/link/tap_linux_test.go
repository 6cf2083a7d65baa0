package link

import (
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
)

// tapNamespace is the path of a network namespace with a persistent tap.
func tapNamespace(t *testing.T) string {
	t.Helper()
	requireRoot(t)
	ns, err := netns.NewWith(func() error {
		return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "eth7"}, Mode: netlink.TUNTAP_MODE_TAP})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return fmt.Sprintf("/proc/self/fd/%d", ns.Fd())
}

func TestOpenTap(t *testing.T) {
	namespace := tapNamespace(t)
	tap, err := OpenTap(namespace, "eth7")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenTap(namespace, "eth7"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("open what is open: %v", err)
	}
	tap.Close()
	// It is the caller's, and stays.
	if tap, err = OpenTap(namespace, "eth7"); err != nil {
		t.Fatalf("open again: %v", err)
	}
	tap.Close()

	for name, c := range map[string]struct {
		namespace, tap string
		is             func(error) bool
	}{
		"no such interface": {namespace, "eth8", errdefs.IsNotFound},
		"not a tap":         {namespace, "lo", errdefs.IsFailedPrecondition},
		"no such namespace": {"/proc/self/nowhere", "eth7", errdefs.IsNotFound},
		"another namespace": {"", "eth7", errdefs.IsNotFound},
	} {
		if tap, err := OpenTap(c.namespace, c.tap); !c.is(err) {
			t.Errorf("%s: %v", name, err)
			tap.Close()
		}
	}
	// A name that is refused is not made, either.
	if err := doAt(namespace, func() error {
		_, err := netlink.LinkByName("eth8")
		return err
	}); !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Errorf("an interface was made: %v", err)
	}
}
