package hypervisor

import (
	"context"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// Parker is a Machine that can be put aside while it keeps its memory.
type Parker interface {
	// Park stops the machine's process. When it returns without error, the
	// process table has shown every thread of it stopped: no virtual CPU runs
	// and nothing is written to disk or tap. On error the machine runs on.
	// Parking a parked machine succeeds.
	Park(ctx context.Context) error

	// Unpark lets the process run again and returns when the process table
	// shows it. That the guest runs is proven only by an answer of its agent to
	// a new nonce, and its wall clock is behind until somebody sets it.
	Unpark(ctx context.Context) error
}

// Reclaimable is a Machine whose memory the host can have back while it waits.
type Reclaimable interface {
	// Reclaim gives the memory of a parked machine's guest back to the host, as
	// far as that loses nothing: what is in a file (Config.MemoryDir) is written
	// back first, private memory goes to swap if there is any, and what has no
	// place on disk stays. The process stays parked; memory comes back as the guest
	// touches it after Unpark. errdefs.ErrFailedPrecondition if it is not parked.
	Reclaim(ctx context.Context) error
}

// Pluggable is a Machine that may have a network interface on a tap of its own:
// NIC.Tap was empty when it was made.
type Pluggable interface {
	// Port is that tap as Launch or Restore has left it: down, and alone, on Linux in
	// a network namespace. Whoever owns the machine takes it to where the interface
	// is to lead, running or parked. On Linux it is gone with the machine wherever it
	// is by then; on FreeBSD it is, from its new description on, whoever's took it,
	// and cannot be destroyed before the machine has ended. nil if the machine has
	// no such tap.
	Port() *NIC
}

// Record is what a machine is found by after the process that launched it has
// ended or has given it away. It is plain data, for a durable record or for
// another process on the same host.
type Record struct {
	// Backend is Backend.Name of the one that made it.
	Backend string `json:"backend"`
	// ID is Config.ID, Dir Config.Dir.
	ID  string `json:"id"`
	Dir string `json:"dir"`
	// Process is the monitor, by pid and start time.
	Process proc.ID `json:"process"`
	// Mark is an argument of the monitor that no other process has.
	Mark string `json:"mark"`
	// CID is the guest's vsock address, 0 if the link is a tap.
	CID uint32 `json:"cid,omitempty"`
}

// Transferable is a Machine that can change hands between processes. The order
// is: the new owner writes its own receipts by Adopt, the old one strikes out
// its own by Disown. In between both have them, which is harmless as long as
// neither undoes: whoever owns the machine is decided above this package.
type Transferable interface {
	// Record names the machine. It may be called from Launch on.
	Record() Record

	// Disown gives the machine up as it is, running or parked: it strikes out
	// the receipts, closes what this process has open of it, and leaves the
	// process alone. After it only ID, Pid, Record and Destroy, which then does
	// nothing, may be called. The parent still reaps the process when it ends.
	Disown() error
}

// Adopter is a Backend that can take over a machine that another process has
// launched.
type Adopter interface {
	// Adopt returns the machine of r as this process's own, with receipts in
	// book, parked if it was parked. Errors: errdefs.ErrNotFound if it no longer
	// exists, in which case everything that is left of it has been released.
	Adopt(ctx context.Context, r Record, book *receipt.Book) (Machine, error)
}

// Searcher is a Backend that finds machines of which there is no record.
type Searcher interface {
	// Strays are what is left of machines with a Config.Dir below dir, which need
	// not exist, and belongs to nobody: every process that has launched, adopted
	// or been given it has ended without destroying it. Where a monitor's virtual
	// machines outlive it, those of ours that have none are among them, whatever
	// their directory was.
	//
	// Nobody owns them, but there may be a record from which somebody will: that
	// is for the caller to know. Machines in directories for which known is true are
	// passed over.
	Strays(ctx context.Context, dir string, known func(dir string) bool) ([]Stray, error)
}

// Stray is what nobody owns of a machine.
type Stray struct {
	// ID and Dir are the machine's, empty where it does not say.
	ID, Dir string
	// Process is its monitor, zero where that has ended.
	Process proc.ID
	// Destroy ends it, and releases what is known to go with it. What has an owner
	// again by then is refused with errdefs.ErrFailedPrecondition; what is gone is
	// no error.
	Destroy func(ctx context.Context) error
}

// Checkpointer is a Machine that can be saved. It has been launched with
// Config.CheckpointDir, or was restored by a backend that can save again.
type Checkpointer interface {
	// Checkpoint saves memory and devices to Config.CheckpointDir and ends the
	// machine: it is the same as a power-off for whoever watches Done. All data
	// is on disk when it returns. On error the machine runs on or has ended, and
	// the directory holds nothing that Restore would take. A machine with disks is
	// errdefs.ErrNotImplemented, before anything has happened to it.
	Checkpoint(ctx context.Context) error
}

// Snapshotter is a Machine that can be saved whenever it runs, and runs on.
type Snapshotter interface {
	// Snapshot saves memory and devices to dir, an existing directory of the
	// caller's that is empty, while the machine stands still, and lets it run
	// again. What is there in the end is all that Restorer.Restore needs. All data
	// is on disk when it returns. On error the machine runs on or has ended, and
	// dir holds nothing that Restore would take. As for Checkpoint, disks are
	// errdefs.ErrNotImplemented.
	Snapshot(ctx context.Context, dir string) error
}

// Restorer is a Backend that can make machines out of a checkpoint.
type Restorer interface {
	// Restore is Launch from the checkpoint in dir instead of a kernel. cfg has
	// to agree with the one that the checkpoint was made with in everything that
	// the guest can see (errdefs.ErrFailedPrecondition otherwise, naming the
	// difference); ID, Dir, NIC.Tap and NIC.MAC may differ, of which the guest
	// keeps the MAC that it was saved with until the agent sets another. Any number of machines may be
	// restored from one checkpoint, at the same time too: what they write to
	// memory is private to each. What is not, byte for byte, as Checkpoint has
	// left it is refused with the same error and the reason; files that this
	// process has read and that nobody has touched since are not read again. dir is not written to and must stay as it is
	// while any of them lives.
	//
	// When it returns, the guest runs and believes that no time has passed.
	Restore(ctx context.Context, cfg Config, dir string, book *receipt.Book) (Machine, error)
}

// Measurer is a Machine that knows what it costs the host.
type Measurer interface {
	// Usage is the monitor's process now.
	Usage(ctx context.Context) (Usage, error)
}

// Usage is what a machine's process takes from the host.
type Usage struct {
	// RSS is resident memory in bytes; PSS shares pages among those that map
	// them, and is 0 where the system cannot tell.
	RSS, PSS uint64
	// PrivateDirty is memory in bytes that only this machine has written.
	// GuestPrivateDirty is the part of it that is the guest's own memory. 0
	// where the system cannot tell.
	PrivateDirty, GuestPrivateDirty uint64
	// CPUNanoseconds is processor time, user and system.
	CPUNanoseconds uint64
	// VMExits counts exits to the monitor or the kernel's hypervisor; 0 where
	// nobody counts.
	VMExits uint64
}
