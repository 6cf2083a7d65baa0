package ninep

import (
	"strings"
	"sync/atomic"
)

// File types as Linux's and FreeBSD's st_mode have them.
const (
	typeMask    = 0o170000
	typeFifo    = 0o010000
	typeChar    = 0o020000
	typeDir     = 0o040000
	typeBlock   = 0o060000
	typeRegular = 0o100000
	typeSymlink = 0o120000
	typeSocket  = 0o140000

	modeSetuid  = 0o4000
	modeSetgid  = 0o2000
	modeExecGrp = 0o0010
	modeBits    = 0o7777
)

// node is a file of the host, pinned by a descriptor that gives no access to
// its content. Fids that were cloned from each other share it. Everything but
// the reference count is immutable.
type node struct {
	// fd is -1 for the directory that SingleFile makes up.
	fd  int
	typ uint32
	// parent is where the node was found, kept alive because ".." leads there
	// and only there: asking the host for ".." could leave the tree after a
	// rename on the host. nil at the root.
	parent *node
	// live counts the session's nodes; nil for those of the tree.
	live *atomic.Int64
	refs atomic.Int32
}

func (n *node) retain() *node {
	n.refs.Add(1)
	return n
}

func (n *node) release() {
	for n != nil && n.refs.Add(-1) == 0 {
		closeFD(n.fd)
		if n.live != nil {
			n.live.Add(-1)
		}
		n = n.parent
	}
}

// checkName refuses what is not the name of a single directory entry.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return linuxEINVAL
	case len(name) > maxName:
		return linuxENAMETOOLONG
	case strings.ContainsAny(name, "/\x00"):
		return linuxEINVAL
	}
	return nil
}

// lookup returns the entry of n with this name, retained for the caller.
func (s *session) lookup(n *node, name string) (*node, qid, error) {
	if n.typ != typeDir {
		return nil, qid{}, linuxENOTDIR
	}
	if name == ".." {
		return s.lookupParent(n)
	}
	if err := checkName(name); err != nil {
		return nil, qid{}, err
	}
	if n.fd < 0 {
		if name != s.tree.onlyName {
			return nil, qid{}, linuxENOENT
		}
		return s.named(s.tree.only)
	}
	fd, err := hostOpenAt(n.fd, name)
	if err != nil {
		return nil, qid{}, err
	}
	return s.newNode(fd, n)
}

// lookupParent answers "..", clamped at the root. A directory that has been
// moved since it was walked to has no parent that this session knows.
func (s *session) lookupParent(n *node) (*node, qid, error) {
	if n.parent == nil {
		return s.named(n)
	}
	want, err := hostStat(n.parent.fd)
	if err != nil {
		return nil, qid{}, err
	}
	got, err := hostStatParent(n.fd)
	if err != nil {
		return nil, qid{}, err
	}
	if got.dev != want.dev || got.ino != want.ino {
		return nil, qid{}, linuxESTALE
	}
	return n.parent.retain(), s.tree.qidOf(want), nil
}

func (s *session) named(n *node) (*node, qid, error) {
	a, err := s.stat(n)
	if err != nil {
		return nil, qid{}, err
	}
	return n.retain(), s.qidOf(n, a), nil
}

// newNode takes over fd, also when it fails.
func (s *session) newNode(fd int, parent *node) (*node, qid, error) {
	if s.nodes.Add(1) > int64(s.tree.opts.MaxFids) {
		s.nodes.Add(-1)
		closeFD(fd)
		return nil, qid{}, linuxENFILE
	}
	a, err := hostStat(fd)
	if err != nil {
		s.nodes.Add(-1)
		closeFD(fd)
		return nil, qid{}, err
	}
	n := &node{fd: fd, typ: a.mode & typeMask, parent: parent.retain(), live: &s.nodes}
	n.refs.Store(1)
	return n, s.tree.qidOf(a), nil
}

// syntheticPath is the inode number of the directory that SingleFile makes up:
// one that file systems do not get to.
const syntheticPath = 1<<62 + 0x9b

func (s *session) stat(n *node) (attr, error) {
	if n.fd >= 0 {
		return hostStat(n.fd)
	}
	return attr{mode: typeDir | 0o555, nlink: 2, blksize: 4096, ino: syntheticPath, dev: s.tree.dev}, nil
}

func (s *session) qidOf(n *node, a attr) qid {
	if n.fd < 0 {
		return qid{typ: qidDir, path: syntheticPath}
	}
	return s.tree.qidOf(a)
}

// changeable returns n's descriptor if the tree lets the client change n.
func (s *session) changeable(n *node) (int, error) {
	if s.tree.opts.ReadOnly || n.fd < 0 {
		return -1, linuxEROFS
	}
	return n.fd, nil
}

// changeableDir is changeable for the directory that an entry called name is
// to be made, removed or renamed in.
func (s *session) changeableDir(n *node, name string) (int, error) {
	if n.typ != typeDir {
		return -1, linuxENOTDIR
	}
	if err := checkName(name); err != nil {
		return -1, err
	}
	return s.changeable(n)
}
