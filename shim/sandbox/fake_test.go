package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/guest"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/stdio"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// fakeBackend makes machines that are this process's own sockets.
type fakeBackend struct {
	t *testing.T
	// launch, if set, may refuse a launch. It runs before anything is taken.
	launch func(ctx context.Context) error
	// furnish, if set, changes an agent before its machine runs.
	furnish func(*fakeAgent)

	mu       sync.Mutex
	machines []*fakeMachine
}

func (b *fakeBackend) Name() string { return "fake" }

func (b *fakeBackend) Capabilities(context.Context) (hypervisor.Capabilities, error) {
	return hypervisor.Capabilities{MaxVCPUs: 1}, nil
}

func (b *fakeBackend) Launch(ctx context.Context, cfg hypervisor.Config, book *receipt.Book) (hypervisor.Machine, error) {
	if b.launch != nil {
		if err := b.launch(ctx); err != nil {
			return nil, err
		}
	}
	line, err := book.Write(fakeResource{})
	if err != nil {
		return nil, err
	}
	m := &fakeMachine{id: cfg.ID, line: line, done: make(chan struct{}), agent: newFakeAgent(b.t)}
	if b.furnish != nil {
		b.furnish(m.agent)
	}
	m.agent.serve()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.machines = append(b.machines, m)
	return m, nil
}

func (b *fakeBackend) launched() []*fakeMachine {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.machines)
}

type fakeResource struct{}

func init() {
	receipt.Register(fakeResource{}.Kind(), func() receipt.Resource { return new(fakeResource) })
}

func (fakeResource) Kind() string               { return "fake machine" }
func (fakeResource) Undo(context.Context) error { return nil }

type fakeMachine struct {
	id    string
	line  *receipt.Receipt
	agent *fakeAgent
	done  chan struct{}

	mu        sync.Mutex
	exit      hypervisor.Exit
	destroyed int
	// rested is what became of it, in order.
	rested []string
	// snapshot, if set, saves it.
	snapshot func(ctx context.Context, dir string) error
}

func (m *fakeMachine) Snapshot(ctx context.Context, dir string) error { return m.snapshot(ctx, dir) }

func (m *fakeMachine) Park(context.Context) error    { return m.rest("park") }
func (m *fakeMachine) Unpark(context.Context) error  { return m.rest("unpark") }
func (m *fakeMachine) Reclaim(context.Context) error { return m.rest("reclaim") }

func (m *fakeMachine) rest(how string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rested = append(m.rested, how)
	return nil
}

const fakePid = 4242

func (m *fakeMachine) ID() string                     { return m.id }
func (m *fakeMachine) Pid() int                       { return fakePid }
func (m *fakeMachine) Done() <-chan struct{}          { return m.done }
func (m *fakeMachine) ConsoleTail() []byte            { return []byte("last line of the console\n") }
func (m *fakeMachine) PowerOff(context.Context) error { return nil }

func (m *fakeMachine) Exit() hypervisor.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exit
}

func (m *fakeMachine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	select {
	case <-m.done:
		return nil, hypervisor.ErrExited
	default:
	}
	return m.agent.dial(ctx, port)
}

// die ends the machine as the host sees it. As the contract has it, open
// connections stay open and silent.
func (m *fakeMachine) die(reason hypervisor.ExitReason) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.done:
		return
	default:
	}
	m.exit = hypervisor.Exit{Reason: reason, At: time.Now()}
	m.agent.freeze()
	close(m.done)
}

func (m *fakeMachine) Destroy(context.Context) error {
	m.die(hypervisor.ExitKilled)
	m.mu.Lock()
	m.destroyed++
	m.mu.Unlock()
	return m.line.Strike()
}

func (m *fakeMachine) wasDestroyed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.destroyed > 0
}

// publisher records what containerd would be told.
type publisher struct {
	mu   sync.Mutex
	sent []events.Event
	// block, if set, holds every event back until it is closed.
	block chan struct{}
	// refuse, if set, may have containerd not take an event.
	refuse func(events.Event) error
}

func (p *publisher) Publish(ctx context.Context, _ string, e events.Event) error {
	p.mu.Lock()
	block := p.block
	p.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse != nil {
		if err := p.refuse(e); err != nil {
			return err
		}
	}
	p.sent = append(p.sent, e)
	return nil
}

// hold makes containerd take no event until what it returns is called.
func (p *publisher) hold() (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	block := make(chan struct{})
	p.block = block
	return func() { close(block) }
}

// names renders what was published: "exit c1/x1 137".
func (p *publisher) names() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for _, e := range p.sent {
		names = append(names, describe(e))
	}
	return names
}

func (p *publisher) has(name string) bool { return slices.Contains(p.names(), name) }

// bed is a sandbox with everything around it faked but the stdio, the receipts
// and the file server.
type bed struct {
	*Sandbox
	t       *testing.T
	backend *fakeBackend
	events  *publisher
	cfg     config.Config
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{t: t, backend: &fakeBackend{t: t}, events: &publisher{}, cfg: config.Default()}
	b.cfg.Guest.Dir = fakeImage(t)
	b.cfg.Machine.BootTimeout = config.Duration{Duration: patience}
	b.cfg.Machine.AgentTimeout = config.Duration{Duration: patience}
	stateDir := filepath.Join(t.TempDir(), "state")
	b.Sandbox = New(namespaces.WithNamespace(context.Background(), "test"), b.backend, b.events, stateDir)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := b.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
		if _, err := os.Stat(stateDir); !os.IsNotExist(err) {
			t.Errorf("the sandbox's home is still there: %v", err)
		}
		for _, m := range b.backend.launched() {
			if !m.wasDestroyed() {
				t.Errorf("machine %s was not destroyed", m.id)
			}
			m.agent.stop()
		}
	})
	return b
}

// fakeImage is a directory that guest.Open accepts.
func fakeImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	m := guest.Manifest{Format: guest.Format, Arch: runtime.GOARCH, Protocol: agentproto.Version,
		Kernel: guest.File{Name: "kernel", Size: 1}, Initrd: guest.File{Name: "initrd", Size: 1}}
	data, err := json.Marshal(m)
	must(t, err)
	for name, data := range map[string][]byte{guest.ManifestName: data, "kernel": {0}, "initrd": {0}} {
		must(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	return dir
}

// request is a Create request for a bundle that is made here.
func (b *bed) request(id string, change ...func(*specs.Spec)) CreateRequest {
	b.t.Helper()
	dir := b.t.TempDir()
	must(b.t, os.Mkdir(filepath.Join(dir, "rootfs"), 0o755))
	spec := &specs.Spec{
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"/bin/true"}, Cwd: "/"},
		Linux:   &specs.Linux{},
	}
	for _, f := range change {
		f(spec)
	}
	data, err := json.Marshal(spec)
	must(b.t, err)
	must(b.t, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600))
	return CreateRequest{ID: id, Bundle: dir, Config: b.cfg}
}

// within is a context for what must not take long.
func (b *bed) within() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	b.t.Cleanup(cancel)
	return ctx
}

func (b *bed) create(r CreateRequest) *Container {
	b.t.Helper()
	c, err := b.Create(b.within(), r)
	must(b.t, err)
	return c
}

// running is a container whose init has been started.
func (b *bed) running(id string) *Container {
	b.t.Helper()
	c := b.create(b.request(id))
	must(b.t, c.Start(b.within(), ""))
	return c
}

func (b *bed) exec(c *Container, execID string, cfg stdio.Config) {
	b.t.Helper()
	must(b.t, c.Exec(b.within(), execID, cfg, processSpec()))
}

func (b *bed) machineNow() *fakeMachine {
	b.t.Helper()
	all := b.backend.launched()
	if len(all) == 0 {
		b.t.Fatal("no machine was launched")
	}
	return all[len(all)-1]
}

func (b *bed) agent() *fakeAgent { return b.machineNow().agent }

// published waits for an event.
func (b *bed) published(name string) {
	b.t.Helper()
	b.eventually("published "+name, func() bool { return b.events.has(name) })
}

// output is a FIFO with a client that reads it.
func (b *bed) output() (path string, client *os.File) {
	b.t.Helper()
	path = filepath.Join(b.t.TempDir(), "out")
	must(b.t, unix.Mkfifo(path, 0o600))
	client, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	must(b.t, err)
	b.t.Cleanup(func() { client.Close() })
	return path, client
}

// inOrder waits for the last of the names and checks that they were published
// in this order, whatever else was in between.
func (b *bed) inOrder(names ...string) {
	b.t.Helper()
	b.published(names[len(names)-1])
	all := b.events.names()
	rest := all
	for _, n := range names {
		i := slices.Index(rest, n)
		if i < 0 {
			b.t.Fatalf("want %q in this order, published were %q", names, all)
		}
		rest = rest[i+1:]
	}
}

func (b *bed) count(name string) int {
	n := 0
	for _, e := range b.events.names() {
		if e == name {
			n++
		}
	}
	return n
}

// wait starts a Wait and returns where its end will be seen.
func (b *bed) wait(c *Container, execID string) <-chan string {
	done := make(chan string, 1)
	go func() {
		e, err := c.Wait(b.within(), execID)
		done <- fmt.Sprint(e.Status, " ", err)
	}()
	return done
}

func (b *bed) wantExit(done <-chan string, status uint32) {
	b.t.Helper()
	select {
	case got := <-done:
		if want := fmt.Sprint(status, " ", error(nil)); got != want {
			b.t.Errorf("Wait returned %q, want %q", got, want)
		}
	case <-time.After(patience):
		b.t.Fatal("Wait did not return")
	}
}

// eventually polls for what has no channel to wait for.
func (b *bed) eventually(what string, cond func() bool) {
	b.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			b.t.Fatalf("never: %s; published were %q", what, strings.Join(b.events.names(), ", "))
		}
	}
}

// noReceipts checks that the bundle's book is empty.
func noReceipts(t *testing.T, bundleDir string) {
	t.Helper()
	book, err := OpenReceipts(bundleDir)
	must(t, err)
	if n := book.Len(); n != 0 {
		t.Errorf("%d receipts are left in the book", n)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
