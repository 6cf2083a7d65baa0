package network

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"

	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/pf"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// MaxIDLength bounds a sandbox's id. It is that of a machine's.
const MaxIDLength = 96

var validID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

func validateID(id string) error {
	if len(id) > MaxIDLength || !validID.MatchString(id) {
		return fmt.Errorf("network of %q: want at most %d letters, digits, '_', '.', '-': %w", id, MaxIDLength, errdefs.ErrInvalidArgument)
	}
	return nil
}

// record is all that is known of a sandbox's network. It names what may exist.
type record struct {
	Result
	Policy policy.Policy `json:"policy"`
	// Ready is false until everything has been made.
	Ready bool `json:"ready"`
	// Making is true while the tap is made, and bears no mark perhaps.
	Making bool `json:"making,omitempty"`
	// Leaving is true from when Del begins: others who write down what all
	// sandboxes share leave this one out.
	Leaving bool `json:"leaving,omitempty"`
	// Opened are the open addresses of domain names, where the packet filter does
	// not close them by itself.
	Opened []opened `json:"opened,omitempty"`
	// Pipe is what the guest's frames go through for the policy's bandwidth, where that
	// is the work of dummynet(4).
	Pipe pf.Pipe `json:"pipe,omitempty"`
	// port is the request's.
	port *Port
}

// store is the state directory of one network. See the package's comment.
type store struct{ dir string }

const (
	sandboxDir = "sandboxes"
	addressDir = "addresses"
	recordFile = "record.json"
)

func (s store) sandbox(id string) string    { return filepath.Join(s.dir, sandboxDir, id) }
func (s store) address(a netip.Addr) string { return filepath.Join(s.dir, addressDir, a.String()) }
func (s store) record(id string) string     { return filepath.Join(s.sandbox(id), recordFile) }
func (s store) open() error {
	for _, dir := range []string{sandboxDir, addressDir} {
		if err := os.MkdirAll(filepath.Join(s.dir, dir), 0o700); err != nil {
			return fmt.Errorf("network: state: %w", err)
		}
	}
	return nil
}

// destroy removes an empty state directory, and the one that is configured if this
// was the last in it.
func (s store) destroy() error {
	for _, dir := range []string{filepath.Join(s.dir, sandboxDir), filepath.Join(s.dir, addressDir), s.dir} {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("network: state: %w", err)
		}
	}
	state := filepath.Dir(s.dir)
	// Other networks may have some.
	_ = os.Remove(s.ports())
	_ = os.Remove(s.pipes())
	if os.Remove(state) == nil && state == stateDir {
		// The shim's, which removes it as well where it is the last.
		_ = os.Remove(filepath.Dir(state))
	}
	return nil
}

// lock makes and locks the sandbox's directory, and says whether it is new: then
// nothing is there of the sandbox. Whoever is given the lock of a directory that
// has been removed meanwhile tries again.
func (s store) lock(ctx context.Context, id string) (lock *os.File, isNew bool, err error) {
	path := s.sandbox(id)
	for {
		err := os.Mkdir(path, 0o700)
		isNew := err == nil
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, false, fmt.Errorf("network of %s: %w", id, err)
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = flock(ctx, f)
		}
		if err != nil {
			return nil, false, fmt.Errorf("network of %s: lock: %w", id, err)
		}
		have, herr := f.Stat()
		there, terr := os.Stat(path)
		if herr == nil && terr == nil && os.SameFile(have, there) {
			return f, isNew, nil
		}
		f.Close()
	}
}

// flock takes the lock of f, in the time that ctx has; else f is closed, now or
// when the kernel gives the lock after all.
func flock(ctx context.Context, f *os.File) error {
	got := make(chan error, 1)
	go func() {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		if err != nil || ctx.Err() != nil {
			f.Close()
			err = errors.Join(err, context.Cause(ctx))
		}
		got <- err
	}()
	select {
	case err := <-got:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// load reads a record; errdefs.ErrNotFound if there is none.
func (s store) load(id string) (*record, error) {
	data, err := os.ReadFile(s.record(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("network of %s: %w", id, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("network of %s: %w", id, err)
	}
	r := &record{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("network of %s: record: %w", id, err)
	}
	if r.MAC == nil {
		// Earlier versions did not write it down.
		r.MAC = MAC(macOf(r.Address))
	}
	return r, nil
}

// save writes a record. The caller has the lock. It does not wait for the disk, as
// package durable does: what the record names is gone after a crash of the host,
// and the state is where such things are (Config.State), so that a sandbox's start
// is not kept for it.
func (s store) save(r *record) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		path := s.record(r.ID)
		if err = os.WriteFile(path+".new", data, 0o600); err == nil {
			err = os.Rename(path+".new", path)
		}
	}
	if err != nil {
		return fmt.Errorf("network of %s: record: %w", r.ID, err)
	}
	s.announce()
	return nil
}

// forget removes the record and gives the address back; without a record, every
// address that is taken in the sandbox's name. The caller has the lock.
func (s store) forget(id string) error {
	var addrs []netip.Addr
	r, err := s.load(id)
	if err == nil {
		addrs = []netip.Addr{r.Address}
	} else if addrs, err = s.addressesOf(id); err != nil {
		return err
	}
	for _, path := range []string{s.record(id) + ".new", s.record(id)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("network of %s: %w", id, err)
		}
	}
	if err := s.free(id, addrs); err != nil {
		return err
	}
	if err := os.Remove(s.sandbox(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("network of %s: %w", id, err)
	}
	return nil
}

func (s store) free(id string, addrs []netip.Addr) error {
	for _, a := range addrs {
		if err := os.Remove(s.address(a)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("network of %s: %w", id, err)
		}
	}
	return nil
}

// freeAddresses gives back every address that is taken in the sandbox's name. The
// caller has the lock.
func (s store) freeAddresses(id string) error {
	addrs, err := s.addressesOf(id)
	if err != nil {
		return err
	}
	return s.free(id, addrs)
}

// ids are the sandboxes that have a directory, sorted.
func (s store) ids() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, sandboxDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("network: state: %w", err)
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids, nil
}

// owners are the ids by the address that each has taken.
func (s store) owners() (map[netip.Addr]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, addressDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("network: state: %w", err)
	}
	owners := map[netip.Addr]string{}
	for _, e := range entries {
		addr, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue
		}
		// One that has gone meanwhile has no owner.
		if id, err := os.Readlink(s.address(addr)); err == nil {
			owners[addr] = id
		}
	}
	return owners, nil
}

func (s store) addressesOf(id string) ([]netip.Addr, error) {
	owners, err := s.owners()
	if err != nil {
		return nil, err
	}
	var own []netip.Addr
	for addr, owner := range owners {
		if owner == id {
			own = append(own, addr)
		}
	}
	slices.SortFunc(own, netip.Addr.Compare)
	return own, nil
}

// take gives the sandbox a free address between first and last. The search begins
// somewhere in the range, by the id, so that an address is not used again at once.
// The caller has the lock, and nothing has been taken for the sandbox before.
func (s store) take(id string, first, last netip.Addr) (netip.Addr, error) {
	size := number(last) - number(first) + 1
	h := fnv.New32a()
	h.Write([]byte(id))
	start := h.Sum32() % size
	for i := range size {
		addr := fromNumber(number(first) + (start+i)%size)
		err := os.Symlink(id, s.address(addr))
		if err == nil {
			return addr, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return netip.Addr{}, fmt.Errorf("network of %s: %w", id, err)
		}
	}
	return netip.Addr{}, fmt.Errorf("network of %s: all addresses from %s to %s are taken: %w", id, first, last, errdefs.ErrResourceExhausted)
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func fromNumber(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// owner is the id of who has taken an address, or empty.
func (s store) owner(addr netip.Addr) string {
	id, err := os.Readlink(s.address(addr))
	if err != nil {
		return ""
	}
	return id
}

// records are those that can be read, by address.
func (s store) records() ([]*record, error) {
	ids, err := s.ids()
	if err != nil {
		return nil, err
	}
	var records []*record
	for _, id := range ids {
		r, err := s.load(id)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	slices.SortFunc(records, func(a, b *record) int { return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.ID, b.ID)) })
	return records, nil
}
