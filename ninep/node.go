package ninep

import (
	"strings"
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
	if n.synthetic() {
		if name != s.tree.onlyName {
			return nil, qid{}, linuxENOENT
		}
		return s.named(s.tree.only)
	}
	dirFD, err := s.pins.pin(n)
	if err != nil {
		return nil, qid{}, err
	}
	defer s.pins.unpin(n)
	fd, err := hostOpenAt(dirFD, name)
	if err != nil {
		return nil, qid{}, err
	}
	a, err := hostStat(fd)
	if err != nil {
		closeFD(fd)
		return nil, qid{}, err
	}
	found, err := s.pins.add(fd, a, n, name)
	if err != nil {
		return nil, qid{}, err
	}
	return found, s.tree.qidOf(a), nil
}

// lookupParent answers "..", clamped at the root. A directory that somebody
// else has moved since it was walked to has no parent that this session knows.
func (s *session) lookupParent(n *node) (*node, qid, error) {
	if n.pins == nil {
		return s.named(n)
	}
	fd, err := s.pins.pin(n)
	if err != nil {
		return nil, qid{}, err
	}
	defer s.pins.unpin(n)
	above, err := hostStatParent(fd)
	if err != nil {
		return nil, qid{}, err
	}
	s.pins.mu.Lock()
	parent := n.parent.retain()
	s.pins.mu.Unlock()
	if above.dev != parent.id.dev || above.ino != parent.id.ino {
		parent.release()
		return nil, qid{}, linuxESTALE
	}
	return parent, s.tree.qidOf(above), nil
}

func (s *session) named(n *node) (*node, qid, error) {
	a, err := s.stat(n)
	if err != nil {
		return nil, qid{}, err
	}
	return n.retain(), s.qidOf(n, a), nil
}

// syntheticPath is the inode number of the directory that SingleFile makes up:
// one that file systems do not get to.
const syntheticPath = 1<<62 + 0x9b

func (s *session) stat(n *node) (attr, error) {
	if n.synthetic() {
		return attr{mode: typeDir | 0o555, nlink: 2, blksize: 4096, ino: syntheticPath, dev: s.tree.dev}, nil
	}
	fd, err := s.pins.pin(n)
	if err != nil {
		return attr{}, err
	}
	defer s.pins.unpin(n)
	return hostStat(fd)
}

func (s *session) qidOf(n *node, a attr) qid {
	if n.synthetic() {
		return qid{typ: qidDir, path: syntheticPath}
	}
	return s.tree.qidOf(a)
}

// pinForChange is pin, if the tree lets the client change n.
func (s *session) pinForChange(n *node) (int, error) {
	if s.tree.opts.ReadOnly || n.synthetic() {
		return -1, linuxEROFS
	}
	return s.pins.pin(n)
}

// pinForEntry is pinForChange for the directory that an entry called name is
// to be made, removed or renamed in.
func (s *session) pinForEntry(n *node, name string) (int, error) {
	if n.typ != typeDir {
		return -1, linuxENOTDIR
	}
	if err := checkName(name); err != nil {
		return -1, err
	}
	return s.pinForChange(n)
}
