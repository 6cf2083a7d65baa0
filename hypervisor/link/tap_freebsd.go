package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"time"
	"unsafe"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// commandTimeout bounds each run of a tool of the system's.
const commandTimeout = 10 * time.Second

// run runs a tool of the base system. An error has what it said.
func run(ctx context.Context, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"LC_ALL=C"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", cmd, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// TapKind is the kind of taps in a receipt book.
const TapKind = "tap"

func init() {
	receipt.Register(TapKind, func() receipt.Resource { return new(tapReceipt) })
}

// tapReceipt is a tap(4), which outlives whoever made it. The system's names
// are used again, so a tap is known by the mark in its description as well.
type tapReceipt struct {
	Name string `json:"name"`
	Mark string `json:"mark"`
}

// Kind implements receipt.Resource.
func (tapReceipt) Kind() string { return TapKind }

// Undo implements receipt.Resource. It waits until nobody has the tap open.
func (r tapReceipt) Undo(ctx context.Context) error {
	mark, err := description(r.Name)
	if errors.Is(err, unix.ENXIO) || err == nil && mark != r.Mark {
		return nil
	}
	if err != nil {
		return fmt.Errorf("tap %s: %w", r.Name, err)
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

// createTap makes a tap and marks it as ours, with a receipt before.
func createTap(book *receipt.Book, mark string) (tapReceipt, *receipt.Receipt, error) {
	tap := tapReceipt{Mark: mark}
	var line *receipt.Receipt
	for range attempts {
		tap.Name = fmt.Sprintf("tap%d", firstUnit+rand.IntN(maxUnit-firstUnit+1))
		var err error
		if line == nil {
			line, err = book.Write(tap)
		} else {
			err = line.Amend(tap)
		}
		if err != nil {
			return tap, line, err
		}
		// ifconfig(8) would take an interface of that name that is there already.
		err = ifioctl(tap.Name, "SIOCIFCREATE2", unix.SIOCIFCREATE2, nil)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err == nil {
			err = ifioctl(tap.Name, "SIOCSIFDESCR", unix.SIOCSIFDESCR, append([]byte(mark), 0))
		}
		return tap, line, err
	}
	return tap, line, fmt.Errorf("no free tap in %d attempts", attempts)
}

// ifreq is struct ifreq with its union as ifr_buffer (net/if.h).
type ifreq struct {
	name   [unix.IFNAMSIZ]byte
	length uintptr
	buffer *byte
}

// ifioctl makes an interface ioctl (netintro(4)) with buf as its buffer.
func ifioctl(name, op string, request uintptr, buf []byte) error {
	s, err := unix.Socket(unix.AF_LOCAL, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(s)
	req := &ifreq{length: uintptr(len(buf)), buffer: unsafe.SliceData(buf)}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), request, uintptr(unsafe.Pointer(req)))
	runtime.KeepAlive(buf)
	if errno != 0 {
		return os.NewSyscallError(op, errno)
	}
	return nil
}

// description is what an interface is described as. ENXIO if there is no such
// interface.
func description(name string) (string, error) {
	// The kernel's limit is net.ifdescr_maxlen, 1024 by default.
	buf := make([]byte, 1024)
	if err := ifioctl(name, "SIOCGIFDESCR", unix.SIOCGIFDESCR, buf); err != nil {
		// No description, or one that is not ours.
		if errors.Is(err, unix.ENOMSG) || errors.Is(err, unix.ENAMETOOLONG) {
			return "", nil
		}
		return "", err
	}
	text, _, _ := bytes.Cut(buf, []byte{0})
	return string(text), nil
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

// newMark is a description that no other tap has.
func newMark() string { return "containerd-shim-bhyve " + uuid.NewString() }
