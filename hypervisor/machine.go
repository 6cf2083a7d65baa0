// Package hypervisor is what the rest of the module knows about virtual
// machines: how one is asked for, what can be done with it while it lives, and
// how its end is learned. It knows nothing of containers.
//
// Backends are packages below this one: qemu on Linux, bhyve on FreeBSD.
// Nothing above this package may ask which one it has. What a backend can do
// beyond Machine is a small interface found by type assertion, announced by
// Capabilities.
package hypervisor

import (
	"context"
	"net"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// Backend makes machines of one kind on this host. It holds no state of its
// own between calls and is safe for concurrent use.
type Backend interface {
	// Name is the backend's name in logs and errors: "qemu" or "bhyve".
	Name() string

	// Capabilities says what this backend can do on this host. The answer is
	// probed, not assumed from a version, and does not change while the process
	// lives.
	Capabilities(ctx context.Context) (Capabilities, error)

	// Launch starts a machine and returns once its virtual CPUs run; the guest
	// is then booting and no one has answered yet. A receipt for each host
	// resource is written to book before the resource is taken.
	//
	// On error nothing is left behind, and the error is a *LaunchError where a
	// process was already running. ctx bounds the launch only: the machine
	// outlives it.
	Launch(ctx context.Context, cfg Config, book *receipt.Book) (Machine, error)
}

// Machine is one running virtual machine. It belongs to the process that
// launched it until it is destroyed or given away (see Transferable), and does
// not end with that process. Methods are safe for concurrent use.
//
// The order of a life is: Launch, Dial (any number), then either the guest
// powers itself off or PowerOff asks for it, then Done closes, then Destroy.
// Destroy is legal at every point and is the only method that must be called.
type Machine interface {
	// ID is Config.ID.
	ID() string

	// Pid is the host process that is the machine. It stays the same until
	// Done, and may be reused by the host afterwards.
	Pid() int

	// Dial opens a connection on the link to a port of the agent. It makes one
	// attempt, bounded by ctx: while the guest boots, it is refused or times
	// out (see DialReady). After Done it fails with ErrExited. Connections that
	// are open when the machine dies are not closed by it: the owner watches
	// Done.
	Dial(ctx context.Context, port uint32) (net.Conn, error)

	// Done is closed when the machine's process has exited and has been
	// reaped. Resources other than the process are held until Destroy.
	Done() <-chan struct{}

	// Exit says how the machine ended. It is valid only after Done.
	Exit() Exit

	// ConsoleTail returns the last bytes that the guest wrote to its console,
	// at most ConsoleTailSize of them. It remains readable after Destroy.
	ConsoleTail() []byte

	// PowerOff asks the virtual machine monitor, not the guest, for an orderly
	// power-off, and returns without waiting for it. Used when the agent cannot
	// be asked.
	PowerOff(ctx context.Context) error

	// Destroy ends the machine by force if it still runs, waits for its
	// process to be gone, and releases everything that Launch took, in reverse
	// order. It may be called again after an error or a success. When ctx ends
	// first, what is left stays in the receipt book.
	Destroy(ctx context.Context) error
}

// Capabilities are what a backend can do on this host.
type Capabilities struct {
	// Accelerated is true where guests run on the hardware's virtualization
	// rather than in software.
	Accelerated bool
	// Vsock is true where the link is AF_VSOCK rather than a private tap.
	Vsock bool
	// Checkpoint is true where machines can be saved and restored: see
	// Checkpointer and Restorer.
	Checkpoint bool
	// Plug is true where a machine may be made with a network interface that is
	// connected to something later: see Pluggable.
	Plug bool
	// MaxVCPUs is the most virtual CPUs that a machine may have.
	MaxVCPUs int
}

// ConsoleTailSize bounds what is kept of a guest's console.
const ConsoleTailSize = 64 << 10

// Exit is the end of a machine.
type Exit struct {
	// Reason is the end in the field's terms.
	Reason ExitReason
	// Detail is what the monitor's process said of it: an exit status, a
	// signal, the last line on its standard error.
	Detail string
	// At is when the process was seen to be gone.
	At time.Time
}

// ExitReason classifies the end of a machine.
type ExitReason string

const (
	// ExitPowerOff is the guest powering itself off, by itself or when asked.
	ExitPowerOff ExitReason = "power-off"
	// ExitReset is the guest asking to be restarted: a reboot, a panic, a
	// triple fault. Machines are never restarted in place.
	ExitReset ExitReason = "reset"
	// ExitKilled is the monitor's process ended by a signal.
	ExitKilled ExitReason = "killed"
	// ExitError is the monitor giving up by itself.
	ExitError ExitReason = "monitor error"
)
