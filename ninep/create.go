package ninep

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// unlinkRemoveDir is P9_DOTL_AT_REMOVEDIR.
const unlinkRemoveDir = 0x200

// createAttempts bounds how often lcreate starts over because the name came
// and went under it.
const createAttempts = 8

// owner returns the ids for hostChown, which leaves alone what is -1.
func (f *fid) owner(gid uint32) (int, int) {
	uid, g := int(f.uid), int(gid)
	if f.uid == noUID {
		uid = -1
	}
	if gid == noUID {
		g = -1
	}
	return uid, g
}

// lcreate makes a regular file in the directory fid, opens it, and makes the
// fid stand for it: fid[4] name[s] flags[4] mode[4] gid[4].
func (s *session) lcreate(d *decoder, r *reply) error {
	id, name := d.u32(), d.str()
	flags, mode, gid := d.u32(), d.u32(), d.u32()
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
	dirFD, err := s.pinForEntry(f.node, name)
	if err != nil {
		return err
	}
	defer s.pins.unpin(f.node)
	for range createAttempts {
		file, q, err := s.createFile(f, dirFD, name, flags, mode, gid)
		if errors.Is(err, unix.EEXIST) && flags&openExclusive == 0 {
			file, q, err = s.openExisting(f, name, flags)
			if errors.Is(err, unix.ENOENT) {
				continue
			}
		}
		if err != nil {
			return err
		}
		return s.installOpen(f, file, q, r)
	}
	return linuxESTALE
}

// createFile makes a file that was not there: with O_EXCL the host can neither
// follow a symbolic link nor open a FIFO or a device in its place.
func (s *session) createFile(f *fid, dirFD int, name string, flags, mode, gid uint32) (*openFile, qid, error) {
	host, writable, err := hostFlags(flags &^ openTruncate)
	if err != nil {
		return nil, qid{}, err
	}
	fd, err := hostOpenNew(dirFD, name, host)
	if err != nil {
		return nil, qid{}, err
	}
	n, q, err := s.lookup(f.node, name)
	if err == nil {
		err = adopt(fd, n, f, mode, gid)
		if err != nil {
			n.release()
		}
	}
	if err != nil {
		closeFD(fd)
		undoCreate(dirFD, name, false, err)
		return nil, qid{}, err
	}
	return &openFile{fd: fd, node: n, owned: true, writable: writable, flags: flags}, q, nil
}

// undoCreate removes a new entry that could not be given its owner or mode,
// unless something else has its name by now. Nobody has had a use for it yet.
func undoCreate(dirFD int, name string, dir bool, why error) {
	if toErrno(why) != linuxESTALE {
		_ = hostUnlink(dirFD, name, dir)
	}
}

// adopt makes sure that n, found by name, is the file that fd just created,
// and gives it its owner and mode. In this order: changing the owner clears
// setuid and setgid.
func adopt(fd int, n *node, f *fid, mode, gid uint32) error {
	created, err := hostStat(fd)
	if err != nil {
		return err
	}
	if created.dev != n.id.dev || created.ino != n.id.ino {
		return linuxESTALE
	}
	uid, g := f.owner(gid)
	if err := hostChown(fd, uid, g); err != nil {
		return err
	}
	return hostChmod(fd, mode&modeBits)
}

func (s *session) openExisting(f *fid, name string, flags uint32) (*openFile, qid, error) {
	n, q, err := s.lookup(f.node, name)
	if err != nil {
		return nil, qid{}, err
	}
	file, err := s.open(n, flags)
	if err != nil {
		n.release()
		return nil, qid{}, err
	}
	file.owned = true
	return file, q, nil
}

// mkdir answers Tmkdir: dfid[4] name[s] mode[4] gid[4].
func (s *session) mkdir(d *decoder, r *reply) error {
	id, name, mode, gid := d.u32(), d.str(), d.u32(), d.u32()
	if err := d.done(); err != nil {
		return err
	}
	return s.makeEntry(r, id, name, gid, typeDir|mode&modeBits, func(dirFD int) error {
		return hostMkdir(dirFD, name)
	})
}

// symlink answers Tsymlink: dfid[4] name[s] symtgt[s] gid[4]. The target means
// something to the guest only, and is never looked at here.
func (s *session) symlink(d *decoder, r *reply) error {
	id, name, target, gid := d.u32(), d.str(), d.str(), d.u32()
	if err := d.done(); err != nil {
		return err
	}
	switch {
	case target == "":
		return linuxENOENT
	case strings.ContainsRune(target, 0):
		return linuxEINVAL
	}
	return s.makeEntry(r, id, name, gid, typeSymlink, func(dirFD int) error {
		return hostSymlink(target, dirFD, name)
	})
}

// mknod answers Tmknod: dfid[4] name[s] mode[4] major[4] minor[4] gid[4].
func (s *session) mknod(d *decoder, r *reply) error {
	id, name, mode := d.u32(), d.str(), d.u32()
	major, minor, gid := d.u32(), d.u32(), d.u32()
	if err := d.done(); err != nil {
		return err
	}
	switch mode & typeMask {
	case 0:
		mode |= typeRegular
	case typeRegular, typeFifo, typeSocket, typeChar, typeBlock:
	default:
		return linuxEINVAL
	}
	return s.makeEntry(r, id, name, gid, mode, func(dirFD int) error {
		return hostMknod(dirFD, name, mode&typeMask, major, minor)
	})
}

// makeEntry makes something other than an open file in a directory, gives it
// its owner and mode, and answers with its qid. mode includes the type.
func (s *session) makeEntry(r *reply, dirID uint32, name string, gid, mode uint32, create func(dirFD int) error) error {
	dir, err := s.fids.acquire(dirID)
	if err != nil {
		return err
	}
	defer s.put(dir)
	parent := dir.current()
	dirFD, err := s.pinForEntry(parent, name)
	if err != nil {
		return err
	}
	defer s.pins.unpin(parent)
	if err := create(dirFD); err != nil {
		return err
	}
	q, err := s.ownEntry(dir, parent, name, gid, mode)
	if err != nil {
		undoCreate(dirFD, name, mode&typeMask == typeDir, err)
		return err
	}
	r.qid(q)
	return nil
}

func (s *session) ownEntry(dir *fid, parent *node, name string, gid, mode uint32) (qid, error) {
	n, q, err := s.lookup(parent, name)
	if err != nil {
		return qid{}, err
	}
	defer n.release()
	if n.typ != mode&typeMask {
		return qid{}, linuxESTALE
	}
	fd, err := s.pins.pin(n)
	if err != nil {
		return qid{}, err
	}
	defer s.pins.unpin(n)
	uid, g := dir.owner(gid)
	if err := hostChown(fd, uid, g); err != nil {
		return qid{}, err
	}
	if n.typ == typeSymlink {
		return q, nil
	}
	return q, hostChmod(fd, mode&modeBits)
}

// link answers Tlink: dfid[4] fid[4] name[s].
func (s *session) link(d *decoder, r *reply) error {
	dirID, id, name := d.u32(), d.u32(), d.str()
	if err := d.done(); err != nil {
		return err
	}
	dir, err := s.fids.acquire(dirID)
	if err != nil {
		return err
	}
	defer s.put(dir)
	f, err := s.fids.acquire(id)
	if err != nil {
		return err
	}
	defer s.put(f)
	parent, n := dir.current(), f.current()
	dirFD, err := s.pinForEntry(parent, name)
	if err != nil {
		return err
	}
	defer s.pins.unpin(parent)
	fd, err := s.pins.pin(n)
	if err != nil {
		return err
	}
	defer s.pins.unpin(n)
	return hostLink(fd, dirFD, name)
}

// renameat answers Trenameat: olddirfid[4] oldname[s] newdirfid[4] newname[s].
func (s *session) renameat(d *decoder, r *reply) error {
	oldID, oldName, newID, newName := d.u32(), d.str(), d.u32(), d.str()
	if err := d.done(); err != nil {
		return err
	}
	oldDir, err := s.fids.acquire(oldID)
	if err != nil {
		return err
	}
	defer s.put(oldDir)
	newDir, err := s.fids.acquire(newID)
	if err != nil {
		return err
	}
	defer s.put(newDir)
	from, to := oldDir.current(), newDir.current()
	oldFD, err := s.pinForEntry(from, oldName)
	if err != nil {
		return err
	}
	defer s.pins.unpin(from)
	newFD, err := s.pinForEntry(to, newName)
	if err != nil {
		return err
	}
	defer s.pins.unpin(to)
	moved, replaced := s.pins.moving(from, oldName), s.pins.moving(to, newName)
	defer s.pins.done(moved)
	defer s.pins.done(replaced)
	if err := hostRename(oldFD, oldName, newFD, newName); err != nil {
		return err
	}
	// In this order: an entry renamed to itself stays.
	s.pins.removed(replaced)
	s.pins.renamed(moved, to, newName)
	return nil
}

// unlinkat answers Tunlinkat: dirfd[4] name[s] flags[4].
func (s *session) unlinkat(d *decoder, r *reply) error {
	id, name, flags := d.u32(), d.str(), d.u32()
	if err := d.done(); err != nil {
		return err
	}
	if flags&^unlinkRemoveDir != 0 {
		return linuxEINVAL
	}
	f, err := s.fids.acquire(id)
	if err != nil {
		return err
	}
	defer s.put(f)
	dir := f.current()
	dirFD, err := s.pinForEntry(dir, name)
	if err != nil {
		return err
	}
	defer s.pins.unpin(dir)
	removed := s.pins.moving(dir, name)
	defer s.pins.done(removed)
	if err := hostUnlink(dirFD, name, flags != 0); err != nil {
		return err
	}
	s.pins.removed(removed)
	return nil
}
