package bhyve

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
)

func (r *rig) heirsBook(t *testing.T) *receipt.Book {
	t.Helper()
	book, err := receipt.Open(filepath.Join(t.TempDir(), "receipts"))
	if err != nil {
		t.Fatal(err)
	}
	return book
}

func TestMachineChangesHands(t *testing.T) {
	r := newRig(t, running)
	m := r.launch(t).(*machine)
	if err := m.Park(t.Context()); err != nil {
		t.Fatal(err)
	}
	book := r.heirsBook(t)
	heir, err := r.Adopt(t.Context(), m.Record(), book)
	if err != nil {
		t.Fatal(err)
	}
	// The link's receipt is the fake's to write.
	if book.Len() != 2 {
		t.Errorf("%d receipts", book.Len())
	}
	if err := m.Disown(); err != nil || r.book.Len() != 0 || r.link.disowned != 1 {
		t.Errorf("disown: %v, %d receipts, link disowned %d times", err, r.book.Len(), r.link.disowned)
	}
	if err := m.Destroy(t.Context()); err != nil || r.link.closed != 0 {
		t.Errorf("destroy of what is another's: %v, link closed %d times", err, r.link.closed)
	}
	if got := heir.(*machine).Record(); got != m.Record() {
		t.Errorf("record %+v, want %+v", got, m.Record())
	}
	if err := heir.(*machine).Unpark(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := heir.Destroy(t.Context()); err != nil || book.Len() != 0 {
		t.Errorf("destroy: %v, %d receipts", err, book.Len())
	}
	if !r.vmm.has("off") {
		t.Error("it was killed without its vCPUs having been woken")
	}
	r.clean(t)
}

// TestPortChangesHands is a machine whose interface's tap is its own, for the heir
// to take to where it is to lead.
func TestPortChangesHands(t *testing.T) {
	r := newRig(t, running)
	r.plugged()
	m := r.launch(t).(*machine)
	conf, err := os.ReadFile(filepath.Join(r.cfg.Dir, configFile))
	if err != nil || !bytes.Contains(conf, []byte("pci.0.3.0.backend=tap4712\n")) {
		t.Errorf("%v: no port in\n%s", err, conf)
	}
	heir, err := r.Adopt(t.Context(), m.Record(), r.heirsBook(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, is := range []hypervisor.Pluggable{m, heir.(*machine)} {
		if port := is.Port(); port == nil || port.Tap != "tap4712" || port.NetNS != "" || port.MAC.String() != r.cfg.NIC.MAC.String() {
			t.Errorf("port %+v", port)
		}
	}
	if err := m.Disown(); err != nil || r.port.disowned != 1 || r.port.closed != 0 {
		t.Errorf("disown: %v, port disowned %d times and closed %d times", err, r.port.disowned, r.port.closed)
	}
	record := m.Record()
	if err := heir.(*machine).Disown(); err != nil {
		t.Fatal(err)
	}
	if err := record.Process.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Adopt(t.Context(), record, r.heirsBook(t)); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
	r.clean(t)
}

// A machine on the tap of a caller has none of its own.
func TestNoPort(t *testing.T) {
	r := newRig(t, running)
	r.cfg.NIC = &hypervisor.NIC{Tap: "tap12", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}}
	if port := r.launch(t).(*machine).Port(); port != nil {
		t.Errorf("port %+v", port)
	}
}

// TestReceiptsOfAnHeir is that what is undone first is what the rest waits for: a
// tap is held until its bhyve has ended.
func TestReceiptsOfAnHeir(t *testing.T) {
	r := newRig(t, running)
	record := r.launch(t).(*machine).Record()
	adoptLink := r.adoptLink
	r.adoptLink = func(tap, mark string, book *receipt.Book) (tapLink, error) {
		if n := book.Len(); n != 0 {
			t.Errorf("%d receipts before the link's", n)
		}
		return adoptLink(tap, mark, book)
	}
	path := filepath.Join(t.TempDir(), "receipts")
	book, err := receipt.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	heir, err := r.Adopt(t.Context(), record, book)
	if err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	vm, process := bytes.Index(written, []byte(`"`+vmKind+`"`)), bytes.Index(written, []byte(`"`+proc.Kind+`"`))
	if vm < 0 || process < vm {
		t.Errorf("the process is not the last of\n%s", written)
	}
	if err := heir.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestAdoptWhatHasEnded(t *testing.T) {
	r := newRig(t, running)
	m := r.launch(t).(*machine)
	record := m.Record()
	// As if its owner had been killed: nobody cleans up.
	if err := m.Disown(); err != nil {
		t.Fatal(err)
	}
	if err := record.Process.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	book := r.heirsBook(t)
	if _, err := r.Adopt(t.Context(), record, book); !errdefs.IsNotFound(err) || book.Len() != 0 {
		t.Errorf("got %v, %d receipts", err, book.Len())
	}
	r.clean(t)
	if _, err := r.Adopt(t.Context(), record, book); !errdefs.IsNotFound(err) {
		t.Errorf("once more: %v", err)
	}
}

func TestAdoptRefuses(t *testing.T) {
	r := newRig(t, running)
	m := r.launch(t).(*machine)
	good := m.Record()
	for name, tc := range map[string]struct {
		change func(*hypervisor.Record)
		is     func(error) bool
	}{
		"another backend's":     {func(r *hypervisor.Record) { r.Backend = "qemu" }, errdefs.IsInvalidArgument},
		"no name":               {func(r *hypervisor.Record) { r.ID = "/" }, errdefs.IsInvalidArgument},
		"another machine's":     {func(r *hypervisor.Record) { r.ID = "other" }, errdefs.IsFailedPrecondition},
		"a directory of no one": {func(r *hypervisor.Record) { r.Dir = os.TempDir() }, errdefs.IsNotFound},
	} {
		record, book := good, r.heirsBook(t)
		tc.change(&record)
		if _, err := r.Adopt(t.Context(), record, book); !tc.is(err) || book.Len() != 0 {
			t.Errorf("%s: %v, %d receipts", name, err, book.Len())
		}
	}
	noLink := errors.New("no link")
	r.adoptLink = func(string, string, *receipt.Book) (tapLink, error) { return nil, noLink }
	book := r.heirsBook(t)
	if _, err := r.Adopt(t.Context(), good, book); !errors.Is(err, noLink) || book.Len() != 0 {
		t.Errorf("got %v, %d receipts", err, book.Len())
	}
	if m.Process.HasExited() {
		t.Error("a failed adoption was its end")
	}
}
