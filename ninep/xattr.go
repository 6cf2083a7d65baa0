package ninep

import (
	"slices"
	"strings"
	"sync"
)

const (
	// maxXattrSize is XATTR_SIZE_MAX and XATTR_LIST_MAX of linux/limits.h.
	maxXattrSize = 64 << 10

	xattrCreate  = 1
	xattrReplace = 2
)

// xattrRead is an attribute's value, or the list of names, as it was when
// Txattrwalk made the fid.
type xattrRead struct {
	data []byte
}

// xattrWrite is an attribute that Txattrcreate announced. It is set when its
// fid is clunked.
type xattrWrite struct {
	name  string
	flags uint32

	mu     sync.Mutex
	value  []byte
	filled int
}

// checkXattrName refuses names that are none, and those by which overlayfs
// marks its own files: set on a directory that the host later uses as a layer,
// they would change what the overlay shows.
func checkXattrName(name string) error {
	switch {
	case name == "" || len(name) > maxName || strings.ContainsRune(name, 0):
		return linuxEINVAL
	case strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay."):
		return linuxEOPNOTSUPP
	}
	return nil
}

// hostModules begin the names of attributes by which security modules of the
// host's kernel know files (include/uapi/linux/xattr.h). A container of the host's
// could not set them; the guest's kernel runs none of these modules.
var hostModules = []string{"security.selinux", "security.SMACK64", "security.apparmor", "security.ima", "security.evm"}

// checkXattrChange is checkXattrName for what is to be set or removed.
func checkXattrChange(name string) error {
	if slices.ContainsFunc(hostModules, func(module string) bool { return strings.HasPrefix(name, module) }) {
		return linuxEOPNOTSUPP
	}
	return checkXattrName(name)
}

// xattrwalk makes newfid stand for an attribute of fid, or for the list of
// their names if name is empty, and answers with the size: fid[4] newfid[4]
// name[s].
func (s *session) xattrwalk(d *decoder, r *reply) error {
	id, newID, name := d.u32(), d.u32(), d.str()
	if err := d.done(); err != nil {
		return err
	}
	f, err := s.fids.acquire(id)
	if err != nil {
		return err
	}
	defer s.put(f)
	n := f.current()
	data, err := s.readXattr(n, name)
	if err != nil {
		return err
	}
	if err := s.reserveXattr(len(data)); err != nil {
		return err
	}
	attribute := &fid{uid: f.uid, node: n.retain(), refs: 1}
	attribute.use.Store(&fidUse{xattrRead: &xattrRead{data: data}})
	if err := s.install(newID, attribute); err != nil {
		return err
	}
	r.u64(uint64(len(data)))
	return nil
}

func (s *session) readXattr(n *node, name string) ([]byte, error) {
	if n.synthetic() {
		return nil, linuxEOPNOTSUPP
	}
	fd, err := s.pins.pin(n)
	if err != nil {
		return nil, err
	}
	defer s.pins.unpin(n)
	if name == "" {
		return hostListXattr(fd, n.typ)
	}
	if err := checkXattrName(name); err != nil {
		return nil, err
	}
	return hostGetXattr(fd, n.typ, name)
}

// reserveXattr accounts for n bytes; put gives them back.
func (s *session) reserveXattr(n int) error {
	if s.xattrBytes.Add(int64(n)) > maxXattrBytes {
		s.xattrBytes.Add(-int64(n))
		return linuxENOMEM
	}
	return nil
}

// xattrcreate makes fid take an attribute's value: fid[4] name[s]
// attr_size[8] flags[4].
func (s *session) xattrcreate(d *decoder, r *reply) error {
	id, name, size, flags := d.u32(), d.str(), d.u64(), d.u32()
	if err := d.done(); err != nil {
		return err
	}
	f, err := s.fids.acquire(id)
	if err != nil {
		return err
	}
	defer s.put(f)
	if f.use.Load() != nil {
		return linuxEBADF
	}
	if s.tree.opts.ReadOnly || f.node.synthetic() {
		return linuxEROFS
	}
	if err := checkXattrChange(name); err != nil {
		return err
	}
	if size > maxXattrSize {
		return linuxE2BIG
	}
	if flags&^(xattrCreate|xattrReplace) != 0 {
		return linuxEINVAL
	}
	if err := s.reserveXattr(int(size)); err != nil {
		return err
	}
	w := &xattrWrite{name: name, flags: flags, value: make([]byte, size)}
	if !f.use.CompareAndSwap(nil, &fidUse{xattrWrite: w}) {
		s.xattrBytes.Add(-int64(size))
		return linuxEBADF
	}
	return nil
}

// write takes the next part of the value.
func (w *xattrWrite) write(offset uint64, data []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if offset != uint64(w.filled) || len(data) > len(w.value)-w.filled {
		return linuxEINVAL
	}
	w.filled += copy(w.value[w.filled:], data)
	return nil
}

// commit sets or removes the attribute. Nothing in the protocol says which:
// removexattr(2) comes as an empty value that must replace one, and that is
// taken for a removal, while any other empty value is set.
func (w *xattrWrite) commit(fd int, typ uint32) error {
	w.mu.Lock()
	value, complete := w.value, w.filled == len(w.value)
	w.mu.Unlock()
	if !complete {
		return linuxEINVAL
	}
	if len(value) == 0 && w.flags == xattrReplace {
		return hostRemoveXattr(fd, typ, w.name)
	}
	return hostSetXattr(fd, typ, w.name, value, w.flags)
}
