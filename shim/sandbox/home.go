package sandbox

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// DefaultStateDir holds the homes of all sandboxes of this host.
var DefaultStateDir = filepath.Join(filepath.Dir(defaults.DefaultStateDir), "containerd-shim-bhyve")

// home is the directory of one sandbox:
//
//	lock           held by the shim for as long as it lives (flock(2))
//	receipts.json  what the machine holds of the host
//	members/ID     links to the bundles of the sandbox's containers, and its own
//	machine/       the hypervisor's
//
// It is in no bundle: a sandbox outlives each of its containers, and containerd
// removes their bundles one by one, in any order. Each bundle names the home
// (homeFile), so that `delete` finds the machine from whichever is left.
type home struct {
	dir  string
	lock *os.File
	book *receipt.Book
}

const (
	homeFile   = "sandbox-home"
	lockFile   = "lock"
	membersDir = "members"
	machineDir = "machine"

	// shimEndWait is how long the last bundle's `delete` waits for a shim that
	// is on its way out: containerd gives `delete` 5 s.
	shimEndWait = 3 * time.Second
	lockPoll    = 20 * time.Millisecond
)

// homeName is unique on the host and short: containers in two namespaces, or
// under two containerds, may have the same id, but no two have the same bundle.
func homeName(id, bundleDir string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(id+"\x00"+bundleDir)))[:16]
}

// openHome makes the home of the sandbox whose first bundle is in bundleDir.
// What a shim before this one has left in it is given back first. A home that
// another shim lives in is errdefs.ErrUnavailable.
func openHome(ctx context.Context, stateDir, id, bundleDir string) (_ *home, err error) {
	h := &home{dir: filepath.Join(stateDir, homeName(id, bundleDir))}
	if h.lock, err = makeLocked(h.dir); err != nil {
		return nil, fmt.Errorf("home of sandbox %s: %w", id, err)
	}
	defer func() {
		if err != nil {
			h.lock.Close()
		}
	}()
	if h.book, err = receipt.Open(filepath.Join(h.dir, receiptsFile)); err != nil {
		return nil, err
	}
	if h.book.Len() > 0 {
		if err := h.book.UndoAll(ctx); err != nil {
			return nil, fmt.Errorf("what an earlier shim of sandbox %s has left: %w", id, err)
		}
	}
	for _, name := range []string{membersDir, machineDir} {
		if err := os.Mkdir(filepath.Join(h.dir, name), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("home of sandbox %s: %w", id, err)
		}
	}
	return h, nil
}

// makeLocked makes dir and locks it. Somebody else may be removing it, and its
// parent, at the same time.
func makeLocked(dir string) (*os.File, error) {
	const attempts = 10
	for range attempts {
		if err := os.MkdirAll(dir, 0o700); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		lock, err := lockIn(dir, os.O_CREATE)
		if !errors.Is(err, fs.ErrNotExist) {
			return lock, err
		}
	}
	return nil, fmt.Errorf("%s is removed again and again: %w", dir, errdefs.ErrUnavailable)
}

// lockIn takes the lock of the home in dir: errdefs.ErrUnavailable while another
// process has it, fs.ErrNotExist where there is no such home (any more).
func lockIn(dir string, flags int) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|flags, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%s is in use by a shim: %w", dir, errdefs.ErrUnavailable)
	}
	if err == nil {
		err = sameFile(f, path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// sameFile is fs.ErrNotExist if f has been removed from path since it was opened.
func sameFile(f *os.File, path string) error {
	locked, err := f.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(path)
	if err == nil && !os.SameFile(locked, there) {
		return fs.ErrNotExist
	}
	return err
}

func (h *home) machine() string { return filepath.Join(h.dir, machineDir) }

// join makes a bundle one of the sandbox's, by the id that containerd will
// delete it under. It comes before anything else is done for the bundle.
func (h *home) join(id, bundleDir string) error {
	if err := os.WriteFile(filepath.Join(bundleDir, homeFile), []byte(h.dir), 0o600); err != nil {
		return fmt.Errorf("join sandbox: %w", err)
	}
	link := filepath.Join(h.dir, membersDir, id)
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("join sandbox: %w", err)
	}
	if err := os.Symlink(bundleDir, link); err != nil {
		return fmt.Errorf("join sandbox: %w", err)
	}
	return nil
}

// leave undoes join, for a container that has been deleted.
func (h *home) leave(ctx context.Context, id string) {
	if err := os.Remove(filepath.Join(h.dir, membersDir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.G(ctx).WithError(err).WithField("container", id).Warn("a deleted container is still on the sandbox's list")
	}
}

// close gives back what is left of the machine and removes the home. On error
// both stay for `delete`.
func (h *home) close(ctx context.Context) error {
	defer h.lock.Close()
	if err := h.book.UndoAll(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(h.dir); err != nil {
		return fmt.Errorf("remove the sandbox's home: %w", err)
	}
	// With the last one goes the parent.
	_ = os.Remove(filepath.Dir(h.dir))
	return nil
}

// CleanUp is for `delete`, which containerd runs for each bundle of a shim that
// has gone, at the same time for all of them, and also for the bundle of every
// container that was deleted in good order. It gives back what the bundle's
// container held, and what the machine held once its shim is dead or this was
// its last bundle.
func CleanUp(ctx context.Context, id, bundleDir string) error {
	dir, err := os.ReadFile(filepath.Join(bundleDir, homeFile))
	if err == nil {
		err = cleanUpHome(ctx, id, string(dir))
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // No machine was ever asked for, or another bundle's `delete` was here.
	}
	book, berr := OpenReceipts(bundleDir)
	if berr == nil {
		if n := book.Len(); n > 0 {
			log.G(ctx).WithField("id", id).Infof("giving back what %d receipts name", n)
		}
		berr = book.UndoAll(ctx)
	}
	return errors.Join(err, berr)
}

func cleanUpHome(ctx context.Context, id, dir string) error {
	if err := os.Remove(filepath.Join(dir, membersDir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	last, err := isEmpty(dir)
	if err != nil {
		return err
	}
	lock, err := lockIn(dir, 0)
	if errdefs.IsUnavailable(err) && !last {
		return nil // The shim serves others.
	}
	if errdefs.IsUnavailable(err) {
		lock, err = awaitLock(ctx, dir)
	}
	switch {
	case errdefs.IsUnavailable(err):
		// Nobody will ask again. Undoing does no harm to what the shim, if it
		// comes to it, undoes as well.
		log.G(ctx).WithError(err).WithField("id", id).Warn("the shim is still there after its last container: ending its machine")
	case err != nil:
		return err
	default:
		defer lock.Close()
	}
	book, err := receipt.Open(filepath.Join(dir, receiptsFile))
	if err != nil {
		return err
	}
	if n := book.Len(); n > 0 {
		log.G(ctx).WithField("id", id).Infof("giving back what %d receipts of the machine name", n)
	}
	return (&home{dir: dir, lock: lock, book: book}).close(ctx)
}

// isEmpty is true when no bundle is left of the home in dir. A bundle that
// containerd has removed does not count.
func isEmpty(dir string) (bool, error) {
	links, err := os.ReadDir(filepath.Join(dir, membersDir))
	if err != nil {
		return false, err
	}
	for _, l := range links {
		if _, err := os.Stat(filepath.Join(dir, membersDir, l.Name())); err == nil {
			return false, nil
		}
	}
	return true, nil
}

// awaitLock is lockIn with patience.
func awaitLock(ctx context.Context, dir string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, shimEndWait)
	defer cancel()
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		lock, err := lockIn(dir, 0)
		if !errdefs.IsUnavailable(err) {
			return lock, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}
