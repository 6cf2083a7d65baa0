package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
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

func init() {
	receipt.Register(TapKind, func() receipt.Resource { return new(tapReceipt) })
}

// Undo implements receipt.Resource. It waits until nobody has the tap open.
func (r tapReceipt) Undo(ctx context.Context) error {
	mark, err := description(r.Name)
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	up := false
	if err == nil && r.New {
		up, err = isUp(r.Name)
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
		if _, err := description(tap.Name); err == nil {
			continue
		} else if !errors.Is(err, unix.ENXIO) {
			return tap, nil, err
		}
		line, err := book.Write(tap)
		if err != nil {
			return tap, nil, err
		}
		// ifconfig(8) would take an interface of that name that is there already.
		err = ifioctl(tap.Name, "SIOCIFCREATE2", unix.SIOCIFCREATE2, nil)
		if errors.Is(err, unix.EEXIST) {
			// Somebody was quicker, and may not have marked it yet.
			if err := line.Strike(); err != nil {
				return tap, nil, err
			}
			continue
		}
		if err == nil {
			err = ifioctl(tap.Name, "SIOCSIFDESCR", unix.SIOCSIFDESCR, append([]byte(mark), 0))
		}
		if err == nil {
			tap.New = false
			err = line.Amend(tap)
		}
		return tap, line, err
	}
	return tapReceipt{}, nil, fmt.Errorf("no free tap in %d attempts", attempts)
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

// isUp says whether an interface is up. One that is not there is not.
func isUp(name string) (bool, error) {
	all, err := net.Interfaces()
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(all, func(i net.Interface) bool { return i.Name == name })
	return i >= 0 && all[i].Flags&net.FlagUp != 0, nil
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
		mark, err := description(name)
		if errors.Is(err, unix.ENXIO) || err == nil && !strings.HasPrefix(mark, markPrefix) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("tap %s: %w", name, err)
		}
		// tap(4) tells it in words alone (tuntap_ioctl, SIOCGIFSTATUS).
		said, err := run(ctx, "/sbin/ifconfig", name)
		if err != nil {
			if _, err := description(name); errors.Is(err, unix.ENXIO) {
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
