package ninep

import "math"

// Bits of Tgetattr's request mask and reply (P9_STATS_*).
const (
	statsBasic = 0x7ff
	statsBtime = 0x800
)

// Bits of Tsetattr's valid mask (P9_ATTR_* in fs/9p/vfs_inode_dotl.c).
const (
	setMode = 1 << iota
	setUID
	setGID
	setSize
	setAtime
	setMtime
	setCtime
	setAtimeTo
	setMtimeTo
)

// v9fsMagic is the file system type that statfs(2) shows in the guest.
const v9fsMagic = 0x01021997

// timespec is a time as stat(2) has it.
type timespec struct {
	sec  int64
	nsec int64
}

// attr is what the host knows about a file. mode includes the type; its bits
// are the same on both hosts.
type attr struct {
	dev, ino        uint64
	mode            uint32
	uid, gid        uint32
	nlink           uint64
	major, minor    uint32 // of the device that a device node stands for
	size            uint64
	blksize, blocks uint64
	atime, mtime    timespec
	ctime, btime    timespec
	hasBtime        bool
}

// encodeDev is Linux's new_encode_dev, the form in which Rgetattr's rdev is
// understood.
func encodeDev(major, minor uint32) uint64 {
	return uint64(minor&0xff | major<<8 | (minor&^0xff)<<12)
}

// getattr answers Tgetattr: fid[4] request_mask[8].
func (s *session) getattr(d *decoder, r *reply) error {
	id, mask := d.u32(), d.u64()
	if err := d.done(); err != nil {
		return err
	}
	f, err := s.fids.acquire(id)
	if err != nil {
		return err
	}
	defer s.put(f)
	n := f.current()
	a, err := s.stat(n)
	if err != nil {
		return err
	}
	valid := uint64(statsBasic)
	if a.hasBtime {
		valid |= mask & statsBtime
	}
	r.u64(valid)
	r.qid(s.qidOf(n, a))
	r.u32(a.mode)
	r.u32(a.uid)
	r.u32(a.gid)
	r.u64(a.nlink)
	r.u64(encodeDev(a.major, a.minor))
	r.u64(a.size)
	r.u64(a.blksize)
	r.u64(a.blocks)
	for _, t := range [...]timespec{a.atime, a.mtime, a.ctime, a.btime} {
		r.u64(uint64(t.sec))
		r.u64(uint64(t.nsec))
	}
	r.u64(0) // gen
	r.u64(0) // data_version
	return nil
}

// timeChange says what becomes of one of a file's times.
type timeChange struct {
	action timeAction
	to     timespec
}

type timeAction int

const (
	timeKeep timeAction = iota
	timeNow
	timeSet
)

func timeChangeOf(valid, bit, bitTo uint32, to timespec) timeChange {
	switch {
	case valid&bit == 0:
		return timeChange{action: timeKeep}
	case valid&bitTo == 0:
		return timeChange{action: timeNow}
	}
	return timeChange{action: timeSet, to: to}
}

// setattr answers Tsetattr: fid[4] valid[4] mode[4] uid[4] gid[4] size[8]
// atime_sec[8] atime_nsec[8] mtime_sec[8] mtime_nsec[8].
func (s *session) setattr(d *decoder, r *reply) error {
	id, valid, mode, uid, gid, size := d.u32(), d.u32(), d.u32(), d.u32(), d.u32(), d.u64()
	atime := timespec{int64(d.u64()), int64(d.u64())}
	mtime := timespec{int64(d.u64()), int64(d.u64())}
	if err := d.done(); err != nil {
		return err
	}
	f, err := s.fids.acquire(id)
	if err != nil {
		return err
	}
	defer s.put(f)
	n := f.current()
	fd, err := s.pinForChange(n)
	if err != nil {
		return err
	}
	defer s.pins.unpin(n)
	if valid&setSize != 0 {
		if err := truncate(f, n.typ, fd, size); err != nil {
			return err
		}
	}
	if valid&(setUID|setGID) != 0 {
		u, g := -1, -1
		if valid&setUID != 0 {
			u = int(uid)
		}
		if valid&setGID != 0 {
			g = int(gid)
		}
		if err := hostChown(fd, u, g); err != nil {
			return err
		}
	}
	// After the owner, whose change clears setuid and setgid.
	if valid&setMode != 0 {
		if n.typ == typeSymlink {
			return linuxEOPNOTSUPP
		}
		if err := hostChmod(fd, mode&modeBits); err != nil {
			return err
		}
	}
	// setCtime alone asks for nothing: the host keeps that time.
	if valid&(setAtime|setMtime) != 0 {
		return hostSetTimes(fd,
			timeChangeOf(valid, setAtime, setAtimeTo, atime),
			timeChangeOf(valid, setMtime, setMtimeTo, mtime))
	}
	return nil
}

func truncate(f *fid, typ uint32, fd int, size uint64) error {
	switch {
	case typ == typeDir:
		return linuxEISDIR
	case typ != typeRegular:
		return linuxEINVAL
	case size > math.MaxInt64:
		return linuxEFBIG
	}
	if file, err := f.file(); err == nil && file.writable {
		return ftruncate(file.fd, int64(size))
	}
	fd, err := hostReopenForWrite(fd)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	return ftruncate(fd, int64(size))
}

// statfsInfo describes a file system; counts are in units of bsize.
type statfsInfo struct {
	bsize                 uint32
	blocks, bfree, bavail uint64
	files, ffree          uint64
	fsid                  uint64
}

// statfs answers Tstatfs: fid[4].
func (s *session) statfs(d *decoder, r *reply) error {
	id := d.u32()
	if err := d.done(); err != nil {
		return err
	}
	f, err := s.fids.acquire(id)
	if err != nil {
		return err
	}
	defer s.put(f)
	n := f.current()
	if n.synthetic() {
		n = s.tree.only
	}
	fd, err := s.pins.pin(n)
	if err != nil {
		return err
	}
	defer s.pins.unpin(n)
	st, err := hostStatfs(fd)
	if err != nil {
		return err
	}
	r.u32(v9fsMagic)
	r.u32(st.bsize)
	r.u64(st.blocks)
	r.u64(st.bfree)
	r.u64(st.bavail)
	r.u64(st.files)
	r.u64(st.ffree)
	r.u64(st.fsid)
	r.u32(maxName)
	return nil
}

// readlink answers Treadlink: fid[4].
func (s *session) readlink(d *decoder, r *reply) error {
	id := d.u32()
	if err := d.done(); err != nil {
		return err
	}
	f, err := s.fids.acquire(id)
	if err != nil {
		return err
	}
	defer s.put(f)
	n := f.current()
	if n.typ != typeSymlink {
		return linuxEINVAL
	}
	fd, err := s.pins.pin(n)
	if err != nil {
		return err
	}
	defer s.pins.unpin(n)
	target, err := hostReadlink(fd)
	if err != nil {
		return err
	}
	r.str(target)
	return nil
}
