package ninep

import (
	"sync"
	"sync/atomic"
)

// fid is the client's handle on a file. The table holds one reference, each
// request that uses it another, so that a clunk cannot close a descriptor under
// a request in flight.
type fid struct {
	// uid owns what is created through the fid; noUID leaves that to the host.
	uid  uint32
	node *node
	// use is what the fid was turned into, once: an open file or an extended
	// attribute. nil until then.
	use atomic.Pointer[fidUse]

	refs  int       // guarded by the table's mu
	locks []lockKey // guarded by the session's locks.mu
}

// fidUse has exactly one of its fields set.
type fidUse struct {
	file       *openFile
	xattrRead  *xattrRead
	xattrWrite *xattrWrite
}

// current is the file that the fid stands for, which Tlcreate changes. The
// caller holds a reference to the fid; the node lives at least as long.
func (f *fid) current() *node {
	if u := f.use.Load(); u != nil && u.file != nil {
		return u.file.node
	}
	return f.node
}

// file returns the open file, or EBADF.
func (f *fid) file() (*openFile, error) {
	if u := f.use.Load(); u != nil && u.file != nil {
		return u.file, nil
	}
	return nil, linuxEBADF
}

// isXattr says that the fid stands for an attribute rather than for a file.
func (f *fid) isXattr() bool {
	u := f.use.Load()
	return u != nil && u.file == nil
}

// fidTable maps the client's numbers.
type fidTable struct {
	mu   sync.Mutex
	fids map[uint32]*fid
	max  int
}

// acquire returns the fid for a request, which puts it back with session.put.
// Fids that stand for an extended attribute are only found by acquireAny.
func (t *fidTable) acquire(id uint32) (*fid, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.fids[id]
	if f == nil || f.isXattr() {
		return nil, linuxEBADF
	}
	f.refs++
	return f, nil
}

func (t *fidTable) acquireAny(id uint32) (*fid, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.fids[id]
	if f == nil {
		return nil, linuxEBADF
	}
	f.refs++
	return f, nil
}

// insert adds f, whose one reference becomes the table's. On error it stays
// the caller's.
func (t *fidTable) insert(id uint32, f *fid) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, taken := t.fids[id]; taken || id == noFid {
		return linuxEBADF
	}
	if len(t.fids) >= t.max {
		return linuxENFILE
	}
	t.fids[id] = f
	return nil
}

// replace makes id stand for f instead of old, and gives the caller the
// table's reference to old.
func (t *fidTable) replace(id uint32, old, f *fid) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fids[id] != old {
		return linuxEBADF
	}
	t.fids[id] = f
	return nil
}

// remove forgets id and gives the caller the table's reference.
func (t *fidTable) remove(id uint32) (*fid, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.fids[id]
	if f == nil {
		return nil, linuxEBADF
	}
	delete(t.fids, id)
	return f, nil
}

// removeAll is remove for every fid.
func (t *fidTable) removeAll() []*fid {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*fid, 0, len(t.fids))
	for id, f := range t.fids {
		all = append(all, f)
		delete(t.fids, id)
	}
	return all
}

// put drops a reference to f, and with the last one what f holds.
func (s *session) put(f *fid) {
	s.fids.mu.Lock()
	f.refs--
	last := f.refs == 0
	s.fids.mu.Unlock()
	if !last {
		return
	}
	s.locks.dropFid(f)
	if u := f.use.Load(); u != nil {
		switch {
		case u.file != nil:
			u.file.close()
		case u.xattrRead != nil:
			s.xattrBytes.Add(-int64(len(u.xattrRead.data)))
		case u.xattrWrite != nil:
			s.xattrBytes.Add(-int64(len(u.xattrWrite.value)))
		}
	}
	f.node.release()
}
