package fakevm

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/guest"
)

const (
	bornEnv    = "FAKEVM_BORN"
	socketName = "agent.sock"
	memoryName = "memory"
)

// birth is what a machine's process is told.
type birth struct {
	Dir, From, SaveTo string
	MemoryMiB         int
}

func encode(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// memory is what a checkpoint holds.
type memory struct {
	BootID    string
	MemoryMiB int
	Uptime    time.Duration
	// Sum is what the rest is refused by if it was altered.
	Sum string
}

func (m memory) sum() string {
	m.Sum = ""
	sum := sha256.Sum256([]byte(encode(m)))
	return hex.EncodeToString(sum[:])
}

// load refuses what was not saved as it is with errdefs.ErrFailedPrecondition, as
// hypervisor.Restorer does.
func load(dir string) (memory, error) {
	m, err := read(filepath.Join(dir, memoryName))
	if err == nil && m.Sum != m.sum() {
		err = errors.New("it was altered")
	}
	if err != nil {
		err = fmt.Errorf("saved memory: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return m, err
}

func read(path string) (m memory, err error) {
	st, err := os.Lstat(path)
	if err != nil {
		return m, err
	}
	if !st.Mode().IsRegular() {
		return m, errors.New("it is not a file")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(data, &m)
}

// Become makes a machine of this process if it was started as one, and does not
// return then.
func Become() {
	data := os.Getenv(bornEnv)
	if data == "" {
		return
	}
	var b birth
	err := json.Unmarshal([]byte(data), &b)
	if err == nil {
		err = run(b)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fake machine:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(b birth) error {
	saved := make(chan os.Signal, 1)
	signal.Notify(saved, unix.SIGUSR1)
	m := memory{BootID: uuid.NewString(), MemoryMiB: b.MemoryMiB}
	if b.From != "" {
		var err error
		if m, err = load(b.From); err != nil {
			return err
		}
	}
	g := &agent{memory: m, began: time.Now()}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	agentv1.RegisterSystemService(server, g)
	agentv1.RegisterThawService(server, g)
	path := filepath.Join(b.Dir, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(context.Background(), l) }()
	select {
	case err := <-ended:
		return err
	case <-saved:
	}
	m.Uptime += time.Since(g.began)
	m.Sum = m.sum()
	return os.WriteFile(filepath.Join(b.SaveTo, memoryName), []byte(encode(m)), 0o600)
}

type agent struct {
	memory memory
	began  time.Time
}

func (a *agent) Hello(_ context.Context, r *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	return &agentv1.HelloResponse{
		Nonce: bytes.Clone(r.Nonce), ProtocolVersion: agentproto.Version, BootId: a.memory.BootID,
		Uptime: durationpb.New(a.memory.Uptime + time.Since(a.began)), Kernel: "fake", MachineArch: runtime.GOARCH,
	}, nil
}

func (a *agent) Thaw(_ context.Context, r *agentv1.ThawRequest) (*agentv1.ThawResponse, error) {
	return &agentv1.ThawResponse{
		Nonce: r.Nonce, Clock: r.Now, BootId: a.memory.BootID, MachineId: r.MachineId, Hostname: r.Hostname,
		Uptime: durationpb.New(a.memory.Uptime + time.Since(a.began)),
	}, nil
}

func (*agent) Clock(context.Context, *agentv1.ClockRequest) (*agentv1.ClockResponse, error) {
	return &agentv1.ClockResponse{Clock: timestamppb.Now()}, nil
}

func (*agent) PowerOff(context.Context, *agentv1.PowerOffRequest) (*emptypb.Empty, error) {
	return nil, errdefs.ErrNotImplemented
}

// Image writes a guest image of a few random bytes to dir.
func Image(dir string) error {
	m := guest.Manifest{Format: guest.Format, Arch: runtime.GOARCH, Protocol: agentproto.Version, KernelRelease: "fake"}
	for name, file := range map[string]*guest.File{"vmlinux": &m.Kernel, "initrd": &m.Initrd} {
		data := make([]byte, 64)
		rand.Read(data)
		sum := sha256.Sum256(data)
		*file = guest.File{Name: name, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, guest.ManifestName), []byte(encode(m)), 0o600)
}
