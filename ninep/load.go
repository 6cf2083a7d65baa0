package ninep

import (
	"fmt"
	"math/rand/v2"

	"github.com/containerd/errdefs"
)

// qids are the names that a tree has for its files where they are not made of
// the host's numbers alone: those that a client knows from another server. The
// zero value has none. They are set before the first session and not changed
// after.
type qids struct {
	known map[fileNumber]qid
	// salt makes the names of all other files different from those, unless it is
	// 0.
	salt uint64
}

type fileNumber struct{ dev, ino uint64 }

// Load makes the next session of the tree go on where a saved one was. The tree
// may be another one, with the same files: its client keeps the names that it
// has for them. For who serves the tree exclusively, and whose client may
// therefore have the contents of files in its cache, they must not have changed.
//
// What does not fit is errdefs.ErrFailedPrecondition and named, what cannot have
// been saved errdefs.ErrInvalidArgument. The tree has to be closed then.
func (t *Tree) Load(saved *Saved) error {
	if err := saved.validate(); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	s := newSession(t)
	s.msize = saved.Msize
	t.mu.Lock()
	taken := t.loaded != nil || len(t.active) > 0
	if !taken {
		t.loaded = s
	}
	t.mu.Unlock()
	if taken {
		return fmt.Errorf("load: the tree has a session: %w", errdefs.ErrFailedPrecondition)
	}
	l := &loader{session: s, saved: saved, nodes: make([]*node, 0, len(saved.Nodes))}
	defer l.release()
	if err := l.load(); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	return nil
}

// validate checks what everything after relies on.
func (s *Saved) validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	if s.Msize < minMsize || s.Msize > maxMsize {
		return bad("message size %d", s.Msize)
	}
	if len(s.Nodes) == 0 {
		return bad("no root")
	}
	for i, n := range s.Nodes[1:] {
		if n.Parent < 0 || n.Parent > i {
			return bad("node %d is in node %d", i+1, n.Parent)
		}
		if err := checkName(n.Name); err != nil {
			return bad("name %q", n.Name)
		}
	}
	for _, f := range s.Fids {
		if f.Node < 0 || f.Node >= len(s.Nodes) {
			return bad("fid %d is of node %d", f.ID, f.Node)
		}
	}
	return nil
}

// loader is a Load under way.
type loader struct {
	*session
	saved *Saved
	// nodes are those of saved, one reference each.
	nodes []*node
}

func (l *loader) load() error {
	known := map[fileNumber]qid{}
	foreign := false
	for i := range l.saved.Nodes {
		n, err := l.node(i)
		if err != nil {
			return err
		}
		l.nodes = append(l.nodes, n)
		is := l.saved.Nodes[i]
		if is.Gone || n.synthetic() {
			continue
		}
		a, err := l.stat(n)
		if err != nil {
			return err
		}
		q := l.tree.qidOf(a)
		was := qid{typ: q.typ, version: is.Version, path: is.Path}
		foreign = foreign || q != was
		known[fileNumber{a.dev, a.ino}] = was
	}
	for _, f := range l.saved.Fids {
		if err := l.fid(f); err != nil {
			return err
		}
	}
	if foreign {
		l.tree.qids = qids{known: known, salt: rand.Uint64() | 1}
	}
	return nil
}

// node finds a node, with one reference for the caller.
func (l *loader) node(i int) (*node, error) {
	is := l.saved.Nodes[i]
	if i == 0 {
		root := l.tree.root
		if root.typ != is.Type {
			return nil, fmt.Errorf("the root is of another type: %w", errdefs.ErrFailedPrecondition)
		}
		return root.retain(), nil
	}
	parent := l.nodes[is.Parent]
	if is.Gone {
		return l.pins.addGone(is.Type, parent, is.Name), nil
	}
	n, _, err := l.lookup(parent, is.Name)
	if err != nil {
		return nil, fmt.Errorf("/%s is not there any more: %w: %w", l.saved.pathOf(i), err, errdefs.ErrFailedPrecondition)
	}
	if err := l.same(n, is); err != nil {
		n.release()
		return nil, fmt.Errorf("/%s %w: %w", l.saved.pathOf(i), err, errdefs.ErrFailedPrecondition)
	}
	return n, nil
}

// same says how a file differs from the one that was saved.
func (l *loader) same(n *node, is SavedNode) error {
	if n.typ != is.Type {
		return fmt.Errorf("is of another type")
	}
	if n.typ != typeRegular || !l.tree.opts.Exclusive {
		return nil
	}
	a, err := l.stat(n)
	if err != nil {
		return err
	}
	if was := (timespec{is.MtimeSec, is.MtimeNsec}); a.size != is.Size || !sameTime(a.mtime, was) {
		return fmt.Errorf("has changed since: %d bytes of %d.%09d, and had %d of %d.%09d",
			a.size, a.mtime.sec, a.mtime.nsec, is.Size, is.MtimeSec, is.MtimeNsec)
	}
	return nil
}

// sameTime also holds for the time of a file that came out of an archive, which
// keeps whole seconds.
func sameTime(now, was timespec) bool {
	return now == was || now == timespec{was.sec, 0}
}

func (l *loader) fid(saved SavedFid) error {
	n := l.nodes[saved.Node]
	f := &fid{uid: saved.UID, node: n.retain(), refs: 1}
	if saved.Open {
		file, err := l.open(n, saved.Flags&^onceFlags)
		if err != nil {
			n.release()
			return fmt.Errorf("open /%s again: %w: %w", l.saved.pathOf(saved.Node), err, errdefs.ErrFailedPrecondition)
		}
		file.flags = saved.Flags
		f.use.Store(&fidUse{file: file})
	}
	return l.install(saved.ID, f)
}

// release gives up the references that are not those of fids.
func (l *loader) release() {
	for _, n := range l.nodes {
		n.release()
	}
}

// addGone makes a node, with one reference, of a file that is not there: whoever
// wants something of it finds it stale.
func (p *pinTable) addGone(typ uint32, parent *node, name string) *node {
	n := &node{typ: typ, pins: p, fd: -1, parent: parent.retain(), name: name}
	n.refs.Store(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nodes++
	p.index(n)
	return n
}
