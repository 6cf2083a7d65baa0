package link

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/command"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/iface"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// commandTimeout bounds each run of a tool of the system's.
const commandTimeout = 10 * time.Second

var tools = command.New(commandTimeout, 0)

// run runs a tool of the base system.
func run(ctx context.Context, argv ...string) ([]byte, error) { return tools.Run(ctx, "", argv...) }

func init() {
	receipt.Register(TapKind, func() receipt.Resource { return new(tapReceipt) })
}

// Undo implements receipt.Resource. It waits until nobody has the tap open.
func (r tapReceipt) Undo(ctx context.Context) error {
	mark, err := iface.Description(r.Name)
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	up := false
	if err == nil && r.New {
		up, err = iface.IsUp(r.Name)
	}
	if err != nil {
		return fmt.Errorf("tap %s: %w", r.Name, err)
	}
	if !r.owns(mark, up) {
		return nil
	}
	// A process rather than an ioctl: it can be given up if the tap is held.
	if _, err := run(ctx, "/sbin/ifconfig", r.Name, "destroy"); err != nil {
		return fmt.Errorf("destroy tap: %w", err)
	}
	return nil
}

// Units are taken at random from above those that the system hands out by
// itself, from the lowest on. The largest is IF_MAXUNIT, net/if.h.
const (
	firstUnit = 1000
	maxUnit   = 0x7fff
	attempts  = 64
)

// createTap makes a tap and marks it as ours, with a receipt before. On error
// the receipt, unless it is nil, is the caller's to undo.
func createTap(book *receipt.Book, mark string) (tapReceipt, *receipt.Receipt, error) {
	for range attempts {
		tap := tapReceipt{Mark: mark, New: true}
		tap.Name = fmt.Sprintf("tap%d", firstUnit+rand.IntN(maxUnit-firstUnit+1))
		if _, err := iface.Description(tap.Name); err == nil {
			continue
		} else if !errors.Is(err, unix.ENXIO) {
			return tap, nil, err
		}
		line, err := book.Write(tap)
		if err != nil {
			return tap, nil, err
		}
		err = iface.Create(tap.Name)
		if errors.Is(err, fs.ErrExist) {
			// Somebody was quicker, and may not have marked it yet.
			if err := line.Strike(); err != nil {
				return tap, nil, err
			}
			continue
		}
		if err == nil {
			err = iface.Describe(tap.Name, mark)
		}
		if err == nil {
			tap.New = false
			err = line.Amend(tap)
		}
		return tap, line, err
	}
	return tapReceipt{}, nil, fmt.Errorf("no free tap in %d attempts", attempts)
}

// heldTap is a tap that lives until whoever has it destroys it.
type heldTap struct {
	tap  tapReceipt
	line *receipt.Receipt
}

// adoptTap takes over a tap that a former owner has made, whether or not it still
// exists, with a receipt in book.
func adoptTap(name, mark string, book *receipt.Book) (heldTap, error) {
	t := heldTap{tap: tapReceipt{Name: name, Mark: mark}}
	var err error
	t.line, err = book.Write(t.tap)
	return t, err
}

// Tap is the name of the tap's interface, and of its device in /dev.
func (t *heldTap) Tap() string { return t.tap.Name }

// Mark tells the tap from another one that gets its name later.
func (t *heldTap) Mark() string { return t.tap.Mark }

// Disown lets go of a tap that has another owner by now. It strikes out the
// receipt, and leaves the tap alone.
func (t *heldTap) Disown() error { return t.line.Strike() }

// Close destroys the tap, if it still bears its mark. It waits until nobody has
// it open. Closing twice is legal.
func (t *heldTap) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	return t.line.Undo(ctx)
}

// markPrefix begins the description of every tap that is a link's or a port's.
const markPrefix = "containerd-shim-bhyve "

// newMark is a description that no other tap has.
func newMark() string { return markPrefix + uuid.NewString() }

// OpenedBy are the taps of links, and of ports that nobody has taken, which the
// process has open: what is to be undone when it has ended and left no record.
func OpenedBy(ctx context.Context, pid int) ([]receipt.Resource, error) {
	names, err := run(ctx, "/sbin/ifconfig", "-g", Group)
	if err != nil {
		return nil, err
	}
	var taps []receipt.Resource
	for name := range strings.FieldsSeq(string(names)) {
		mark, err := iface.Description(name)
		if errors.Is(err, unix.ENXIO) || err == nil && !strings.HasPrefix(mark, markPrefix) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("tap %s: %w", name, err)
		}
		// tap(4) tells it in words alone (tuntap_ioctl, SIOCGIFSTATUS).
		said, err := run(ctx, "/sbin/ifconfig", name)
		if err != nil {
			if _, err := iface.Description(name); errors.Is(err, unix.ENXIO) {
				continue
			}
			return nil, err
		}
		if slices.Contains(strings.Split(string(said), "\n"), fmt.Sprintf("\tOpened by PID %d", pid)) {
			taps = append(taps, tapReceipt{Name: name, Mark: mark})
		}
	}
	return taps, nil
}
