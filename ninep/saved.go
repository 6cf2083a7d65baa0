package ninep

import (
	"fmt"
	"maps"
	"path"
	"slices"

	"github.com/containerd/errdefs"
)

// Saved is a session between two requests: what its client knows the tree by. It
// is plain data, for a client that goes on with another server: a guest whose
// memory was saved while the tree was mounted.
type Saved struct {
	// Msize is the message size that was agreed on.
	Msize uint32 `json:"msize"`
	// Nodes are the files that the client refers to and those above them, each
	// after the one that it is in. The first one is the root.
	Nodes []SavedNode `json:"nodes"`
	Fids  []SavedFid  `json:"fids"`
}

// SavedNode is a file by its name.
type SavedNode struct {
	// Parent is the index of the directory that it is in.
	Parent int    `json:"parent"`
	Name   string `json:"name,omitempty"`
	// Type are the bits of st_mode.
	Type uint32 `json:"type"`
	// Version and Path are of the qid that the client knows.
	Version uint32 `json:"version,omitempty"`
	Path    uint64 `json:"path,omitempty"`
	// Size in bytes, and the time of the last change of the contents.
	Size      uint64 `json:"size,omitempty"`
	MtimeSec  int64  `json:"mtime_sec,omitempty"`
	MtimeNsec int64  `json:"mtime_nsec,omitempty"`
	// Gone: nothing is there under its name, or something else is.
	Gone bool `json:"gone,omitempty"`
}

// SavedFid is a handle of the client's.
type SavedFid struct {
	ID  uint32 `json:"id"`
	UID uint32 `json:"uid"`
	// Node is an index.
	Node int `json:"node"`
	// Open is true for an open file, and Flags what it was opened with, as the
	// protocol has them.
	Open  bool   `json:"open,omitempty"`
	Flags uint32 `json:"flags,omitempty"`
}

// onceFlags mean something at the first opening only.
const onceFlags = openExclusive | openTruncate

// Save describes the only session of the tree, which goes on undisturbed. It is
// errdefs.ErrUnavailable while a request is being served, and
// errdefs.ErrFailedPrecondition, with the name of the file, for what no other
// server could go on with: an open file that has no name any more, and locks that
// the host keeps. A file without a name that is not open is saved as one that is
// gone.
func (t *Tree) Save() (*Saved, error) {
	t.mu.Lock()
	all := slices.Collect(maps.Keys(t.active))
	t.mu.Unlock()
	if len(all) != 1 {
		return nil, fmt.Errorf("save: the tree has %d sessions, not one: %w", len(all), errdefs.ErrFailedPrecondition)
	}
	return all[0].save()
}

// saver is a save under way.
type saver struct {
	*session
	saved Saved
	index map[*node]int
}

func (s *session) save() (*Saved, error) {
	if n := s.inFlight.count(); n > 0 || s.msize == 0 {
		return nil, fmt.Errorf("save: %d requests are being served: %w", n, errdefs.ErrUnavailable)
	}
	v := &saver{session: s, saved: Saved{Msize: s.msize}, index: map[*node]int{}}
	if _, err := v.node(s.tree.root); err != nil {
		return nil, err
	}
	s.fids.mu.Lock()
	fids := maps.Clone(s.fids.fids)
	s.fids.mu.Unlock()
	for id, f := range fids {
		saved, err := v.fid(id, f)
		if err != nil {
			return nil, err
		}
		v.saved.Fids = append(v.saved.Fids, saved)
	}
	return &v.saved, nil
}

func (v *saver) fid(id uint32, f *fid) (SavedFid, error) {
	n := f.current()
	i, err := v.node(n)
	if err != nil {
		return SavedFid{}, err
	}
	s := SavedFid{ID: id, UID: f.uid, Node: i}
	refuse := func(what string) error {
		return fmt.Errorf("save: /%s %s: %w", v.pathOf(i), what, errdefs.ErrFailedPrecondition)
	}
	v.locks.mu.Lock()
	locked := len(f.locks) > 0
	v.locks.mu.Unlock()
	switch {
	case locked:
		return s, refuse("is locked")
	case f.isXattr():
		return s, refuse("has an attribute that is being read or written")
	}
	if file, err := f.file(); err == nil {
		if v.saved.Nodes[i].Gone {
			return s, refuse("is open and has been removed, or is not where it was opened")
		}
		s.Open, s.Flags = true, file.flags&^onceFlags
	}
	return s, nil
}

// node returns the index of n, which it adds if it is not there yet.
func (v *saver) node(n *node) (int, error) {
	if i, ok := v.index[n]; ok {
		return i, nil
	}
	saved := SavedNode{Type: n.typ}
	switch {
	case n == v.tree.root:
	case n == v.tree.only:
		saved.Name = v.tree.onlyName
	default:
		v.pins.mu.Lock()
		parent, unnamed := n.parent.retain(), n.unnamed
		saved.Name = n.name
		v.pins.mu.Unlock()
		defer parent.release()
		i, err := v.node(parent)
		if err != nil {
			return 0, err
		}
		saved.Parent = i
		saved.Gone = unnamed || v.saved.Nodes[i].Gone || !v.isThere(n, parent, saved.Name)
	}
	if !saved.Gone {
		a, err := v.stat(n)
		if err != nil {
			return 0, fmt.Errorf("save: %s: %w", saved.Name, err)
		}
		q := v.qidOf(n, a)
		saved.Version, saved.Path = q.version, q.path
		if n.typ == typeRegular {
			saved.Size, saved.MtimeSec, saved.MtimeNsec = a.size, a.mtime.sec, a.mtime.nsec
		}
	}
	v.saved.Nodes = append(v.saved.Nodes, saved)
	v.index[n] = len(v.saved.Nodes) - 1
	return v.index[n], nil
}

// isThere says that n is what its name leads to.
func (v *saver) isThere(n, parent *node, name string) bool {
	dirFD, err := v.pins.pin(parent)
	if err != nil {
		return false
	}
	defer v.pins.unpin(parent)
	fd, err := hostOpenAt(dirFD, name)
	if err != nil {
		return false
	}
	defer closeFD(fd)
	a, err := hostStat(fd)
	return err == nil && v.pins.identityOf(a) == n.id && a.mode&typeMask == n.typ
}

func (v *saver) pathOf(i int) string { return v.saved.pathOf(i) }

// pathOf is the path of a node below the root. Every parent precedes its node.
func (s *Saved) pathOf(i int) string {
	if i == 0 {
		return ""
	}
	return path.Join(s.pathOf(s.Nodes[i].Parent), s.Nodes[i].Name)
}
