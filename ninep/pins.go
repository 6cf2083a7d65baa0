package ninep

import (
	"container/list"
	"sync"
	"sync/atomic"
)

// pinTable keeps the number of descriptors that a session's nodes take within
// a budget. The client decides how many files it has fids for (v9fs keeps one
// for every cached directory entry) and cannot be asked for any back, so nodes
// that no request is using give up their descriptor, least recently used
// first, and find their file again when they need it: by name, in their parent,
// and only if it still is the same file.
//
// Names therefore have to be kept right when the client renames and removes
// entries (see moving). A file that somebody else moved while its node had no
// descriptor is stale, as on NFS.
type pinTable struct {
	budget   int
	maxNodes int
	// birth says that identities can rely on the birth time.
	birth bool

	mu     sync.Mutex
	nodes  int
	open   int        // nodes with a descriptor
	idle   *list.List // *node: has a descriptor and a name, no user; next to go is last
	byName map[entryName]map[*node]struct{}
}

// entryName is a directory entry, wherever the directory is by now.
type entryName struct {
	dev, ino uint64
	name     string
}

// identity tells a file from others that have or had its name.
type identity struct {
	dev, ino uint64
	birth    timespec
}

func (p *pinTable) identityOf(a attr) identity {
	id := identity{dev: a.dev, ino: a.ino}
	if p.birth {
		id.birth = a.btime
	}
	return id
}

// node is a file of the host that the client has been shown. It is known by a
// descriptor that gives no access to its content. Fids that were cloned from
// each other share it.
type node struct {
	typ uint32
	id  identity
	// pins is nil for a tree's own nodes, whose descriptors stay.
	pins *pinTable
	refs atomic.Int32

	// Guarded by pins.mu. fd is -1 while there is none, and always in the
	// directory that SingleFile makes up. parent is kept alive because the
	// node is found through it, and because ".." leads there and only there:
	// asking the host for ".." could leave the tree after a rename on the host.
	fd      int
	parent  *node
	name    string
	users   int
	unnamed bool // removed: the descriptor is all there is
	idle    *list.Element
}

func (n *node) retain() *node {
	n.refs.Add(1)
	return n
}

// synthetic says that n is the directory that SingleFile makes up.
func (n *node) synthetic() bool { return n.pins == nil && n.fd < 0 }

func (n *node) release() {
	for n != nil && n.refs.Add(-1) == 0 {
		var fd int
		if n.pins != nil {
			// Under its lock: the descriptor may just be given up.
			fd, n = n.pins.forget(n)
		} else {
			fd, n = n.fd, n.parent
		}
		closeFD(fd)
	}
}

// add makes a node, with one reference, of fd, which it takes over also when
// it fails.
func (p *pinTable) add(fd int, a attr, parent *node, name string) (*node, error) {
	n := &node{typ: a.mode & typeMask, id: p.identityOf(a), pins: p, fd: fd, parent: parent, name: name}
	n.refs.Store(1)
	p.mu.Lock()
	if p.nodes >= p.maxNodes {
		p.mu.Unlock()
		closeFD(fd)
		return nil, linuxENFILE
	}
	parent.retain()
	p.nodes++
	p.open++
	p.index(n)
	n.idle = p.idle.PushFront(n)
	p.evictAndUnlock()
	return n, nil
}

// forget takes out a node to which nothing refers.
func (p *pinTable) forget(n *node) (fd int, parent *node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nodes--
	if n.fd >= 0 {
		p.open--
	}
	p.unindex(n)
	if n.idle != nil {
		p.idle.Remove(n.idle)
	}
	return n.fd, n.parent
}

func (p *pinTable) index(n *node) {
	key := entryName{n.parent.id.dev, n.parent.id.ino, n.name}
	if p.byName[key] == nil {
		p.byName[key] = make(map[*node]struct{})
	}
	p.byName[key][n] = struct{}{}
}

func (p *pinTable) unindex(n *node) {
	key := entryName{n.parent.id.dev, n.parent.id.ino, n.name}
	delete(p.byName[key], n)
	if len(p.byName[key]) == 0 {
		delete(p.byName, key)
	}
}

// maxDepth is how many directories are looked for again on the way to one file:
// more than a path of PATH_MAX has. How deep a tree is, and so how much stack the
// way takes, is up to the client. A variable for tests.
var maxDepth = 4096

// pin returns n's descriptor, which stays open until unpin.
func (p *pinTable) pin(n *node) (int, error) { return p.pinAt(n, 0) }

// pinAt is pin on the way to a file that is so much deeper.
func (p *pinTable) pinAt(n *node, depth int) (int, error) {
	if n.pins == nil {
		return n.fd, nil
	}
	p.mu.Lock()
	n.users++
	if n.idle != nil {
		p.idle.Remove(n.idle)
		n.idle = nil
	}
	fd, parent, name := n.fd, n.parent.retain(), n.name
	p.mu.Unlock()
	defer parent.release()
	if fd >= 0 {
		return fd, nil
	}
	fd, err := p.find(n, parent, name, depth)
	if err != nil {
		p.unpin(n)
		return -1, err
	}
	return fd, nil
}

// find gives n a descriptor again.
func (p *pinTable) find(n, parent *node, name string, depth int) (int, error) {
	if depth >= maxDepth {
		return -1, linuxENAMETOOLONG
	}
	dirFD, err := p.pinAt(parent, depth+1)
	if err != nil {
		return -1, err
	}
	defer p.unpin(parent)
	fd, err := hostOpenAt(dirFD, name)
	if err != nil {
		if e := toErrno(err); e == linuxENOENT || e == linuxENOTDIR {
			err = linuxESTALE
		}
		return -1, err
	}
	a, err := hostStat(fd)
	if err == nil && (p.identityOf(a) != n.id || a.mode&typeMask != n.typ) {
		err = linuxESTALE
	}
	if err != nil {
		closeFD(fd)
		return -1, err
	}
	p.mu.Lock()
	if other := n.fd; other >= 0 {
		p.mu.Unlock()
		closeFD(fd)
		return other, nil
	}
	n.fd = fd
	p.open++
	p.evictAndUnlock()
	return fd, nil
}

func (p *pinTable) unpin(n *node) {
	if n.pins == nil {
		return
	}
	p.mu.Lock()
	n.users--
	if n.users == 0 && n.fd >= 0 && !n.unnamed {
		n.idle = p.idle.PushFront(n)
	}
	p.evictAndUnlock()
}

// evictAndUnlock gets back to the budget, and closes descriptors only after
// releasing mu.
func (p *pinTable) evictAndUnlock() {
	var fds []int
	for p.open > p.budget && p.idle.Len() > 0 {
		n := p.idle.Remove(p.idle.Back()).(*node)
		fds = append(fds, n.fd)
		n.fd, n.idle = -1, nil
		p.open--
	}
	p.mu.Unlock()
	for _, fd := range fds {
		closeFD(fd)
	}
}

// moving pins the nodes that are found by an entry which is about to be
// renamed or removed: they could not be found afterwards. The caller says what
// became of them with renamed or removed, and ends with done.
func (p *pinTable) moving(dir *node, name string) []*node {
	var nodes []*node
	p.mu.Lock()
	for n := range p.byName[entryName{dir.id.dev, dir.id.ino, name}] {
		if retainLive(n) {
			nodes = append(nodes, n)
		}
	}
	p.mu.Unlock()
	pinned := nodes[:0]
	for _, n := range nodes {
		// One that is not found any more is stale, and remains so.
		if _, err := p.pin(n); err != nil {
			n.release()
			continue
		}
		pinned = append(pinned, n)
	}
	return pinned
}

// retainLive is retain for a node that nothing may refer to any more.
func retainLive(n *node) bool {
	for {
		refs := n.refs.Load()
		if refs == 0 {
			return false
		}
		if n.refs.CompareAndSwap(refs, refs+1) {
			return true
		}
	}
}

// renamed records the new name of what moving returned.
func (p *pinTable) renamed(nodes []*node, dir *node, name string) {
	for _, n := range nodes {
		p.mu.Lock()
		p.unindex(n)
		old := n.parent
		n.parent, n.name, n.unnamed = dir.retain(), name, false
		p.index(n)
		p.mu.Unlock()
		old.release()
	}
}

// removed records that what moving returned has no name any more.
func (p *pinTable) removed(nodes []*node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range nodes {
		p.unindex(n)
		n.unnamed = true
	}
}

func (p *pinTable) done(nodes []*node) {
	for _, n := range nodes {
		p.unpin(n)
		n.release()
	}
}
