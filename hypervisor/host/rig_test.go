//go:build linux || freebsd

package host

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/google/uuid"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// patience is longer than a boot in software within software, on a busy machine.
const patience = 8 * time.Minute

// guestDirEnv names the directory of the guest image that the tests boot.
const guestDirEnv = "BHYVE_GUEST_DIR"

func TestMain(m *testing.M) {
	handled, err := BecomeMachine(os.Args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if !handled {
		os.Exit(m.Run())
	}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	t.Cleanup(cancel)
	return ctx
}

func testBook(t *testing.T) *receipt.Book {
	t.Helper()
	book, err := receipt.Open(filepath.Join(t.TempDir(), "receipts"))
	if err != nil {
		t.Fatal(err)
	}
	return book
}

// rig is a machine whose agent answers.
type rig struct {
	*testing.T
	hypervisor.Machine
	cfg    hypervisor.Config
	book   *receipt.Book
	client *ttrpc.Client
	system agentv1.SystemService
	thaw   agentv1.ThawService
}

func testConfig(t *testing.T) hypervisor.Config {
	t.Helper()
	dir := os.Getenv(guestDirEnv)
	if dir == "" {
		t.Skipf("boots the guest image in $%s, which is not set", guestDirEnv)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a link")
	}
	caps, err := Backend().Capabilities(t.Context())
	if errdefs.IsUnavailable(err) || errdefs.IsNotImplemented(err) || errdefs.IsFailedPrecondition(err) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return hypervisor.Config{
		ID: "test-" + uuid.NewString()[:8], Dir: t.TempDir(), VCPUs: min(2, caps.MaxVCPUs), MemoryMiB: 256,
		Kernel: kernels(t, dir)[0], Initrd: filepath.Join(dir, "initrd.img"),
	}
}

// kernels are the guest image's: the one that machines boot, and the compressed
// one that it was taken out of, if that is there.
func kernels(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "vmlinu[xz]"))
	if err != nil || len(found) == 0 {
		t.Fatalf("kernel in %s: %q, %v", dir, found, err)
	}
	return found
}

// boot launches the guest image, as changed, and says hello to the agent.
func boot(t *testing.T, changes ...func(*hypervisor.Config)) *rig {
	t.Helper()
	cfg := testConfig(t)
	for _, change := range changes {
		change(&cfg)
	}
	book := testBook(t)
	m, err := Backend().Launch(testContext(t), cfg, book)
	if err != nil {
		t.Fatal(err)
	}
	return newRig(t, m, cfg, book)
}

// newRig says hello to a machine, and ends it with the test.
func newRig(t *testing.T, m hypervisor.Machine, cfg hypervisor.Config, book *receipt.Book) *rig {
	t.Helper()
	r := &rig{T: t, Machine: m, cfg: cfg, book: book}
	t.Cleanup(func() {
		if err := m.Destroy(testContext(t)); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("console:\n%s", m.ConsoleTail())
		}
		if n := book.Len(); n != 0 {
			t.Errorf("%d receipts left", n)
		}
	})
	r.system = r.connect()
	return r
}

// connect talks to the agent, over a connection that ends with the test.
func (r *rig) connect() agentv1.SystemService {
	r.Helper()
	conn, err := hypervisor.DialReady(testContext(r.T), r.Machine, agentproto.PortControl)
	if err != nil {
		r.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	r.Cleanup(func() { client.Close() })
	r.client = client
	r.system, r.thaw = agentv1.NewSystemClient(client), agentv1.NewThawClient(client)
	r.greet(testContext(r.T))
	return r.system
}

// greet has the agent answer a new nonce.
func (r *rig) greet(ctx context.Context) *agentv1.HelloResponse {
	r.Helper()
	answer, err := r.hello(ctx)
	if err != nil {
		r.Fatal(err)
	}
	return answer
}

func (r *rig) hello(ctx context.Context) (*agentv1.HelloResponse, error) {
	nonce := []byte(uuid.NewString())
	answer, err := r.system.Hello(ctx, &agentv1.HelloRequest{Nonce: nonce})
	if err == nil && !bytes.Equal(answer.Nonce, nonce) {
		err = fmt.Errorf("nonce %q came back as %q", nonce, answer.Nonce)
	}
	return answer, err
}

// waitDone waits for the machine's end.
func (r *rig) waitDone() hypervisor.Exit {
	r.Helper()
	select {
	case <-r.Done():
		return r.Exit()
	case <-testContext(r.T).Done():
		r.Fatal("the machine does not end")
		return hypervisor.Exit{}
	}
}
