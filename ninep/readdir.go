package ninep

import "math"

// dirEntry is one entry as the host gives it.
type dirEntry struct {
	ino  uint64
	next int64 // where the entry after this one is
	typ  uint8 // DT_*, the same numbers on Linux and FreeBSD
	name []byte
}

const (
	dirTypeDir     = 4
	dirTypeSymlink = 10

	// direntOverhead is what an entry of Rreaddir takes besides its name:
	// qid[13] offset[8] type[1] name[s].
	direntOverhead = qidSize + 8 + 1 + 2
)

// readdir answers Treaddir: fid[4] offset[8] count[4]. Offsets are the host's
// own cookies, so that nothing is remembered for them, and entries that come
// and go meanwhile make the others neither vanish nor appear twice.
func (s *session) readdir(d *decoder, r *reply) error {
	id, offset, count := d.u32(), d.u64(), d.u32()
	if err := d.done(); err != nil {
		return err
	}
	f, err := s.fids.acquire(id)
	if err != nil {
		return err
	}
	defer s.put(f)
	file, err := f.file()
	if err != nil {
		return err
	}
	if file.dir == nil {
		return linuxENOTDIR
	}
	if offset > math.MaxInt64 {
		return linuxEINVAL
	}
	size := int(min(count, s.msize-dataHeaderSize))
	r.reserve(4 + size)
	r.u32(0)
	limit := dataHeaderSize + size
	if file.fd < 0 {
		err = s.readSyntheticDir(offset, r, limit)
	} else {
		err = s.readHostDir(file, int64(offset), r, limit)
	}
	if err != nil {
		return err
	}
	filled := len(r.b) - dataHeaderSize
	r.b = r.b[:headerSize]
	r.u32(uint32(filled))
	r.b = r.b[:dataHeaderSize+filled]
	return nil
}

func (s *session) readHostDir(file *openFile, offset int64, r *reply, limit int) error {
	// The host's records are never less than 6/7 of ours, so what they are
	// read into is chosen such that nearly always all of them fit.
	buf := getBuffer(max((limit-dataHeaderSize)/7*6, hostMinDirBuffer))
	defer putBuffer(buf)

	dir := file.dir
	dir.mu.Lock()
	defer dir.mu.Unlock()
	if offset != dir.pos {
		if err := seekDir(file.fd, offset); err != nil {
			return err
		}
		dir.pos = offset
	}
	n, err := hostReadDir(file.fd, buf)
	if err != nil {
		return err
	}
	first := true
	for rest := buf[:n]; len(rest) > 0; {
		e, size := hostDirEntry(rest)
		if size == 0 {
			break
		}
		rest = rest[size:]
		if len(e.name) == 0 {
			continue
		}
		if len(r.b)+direntOverhead+len(e.name) > limit {
			// The descriptor is further than what has been told.
			if err := seekDir(file.fd, dir.pos); err != nil || !first {
				return err
			}
			return linuxEINVAL
		}
		first = false
		s.putEntry(r, file.node, e)
		dir.pos = e.next
	}
	return nil
}

func (s *session) putEntry(r *reply, dir *node, e dirEntry) {
	q := qid{path: s.tree.qidPath(s.tree.dev, e.ino)}
	switch e.typ {
	case dirTypeDir:
		q.typ = qidDir
	case dirTypeSymlink:
		q.typ = qidSymlink
	}
	// The number of the directory above the root is none of the client's
	// business.
	if dir.pins == nil && string(e.name) == ".." {
		if a, err := s.stat(dir); err == nil {
			q.path = s.tree.qidPath(a.dev, a.ino)
		}
	}
	r.qid(q)
	r.u64(uint64(e.next))
	r.u8(e.typ)
	r.u16(uint16(len(e.name)))
	r.b = append(r.b, e.name...)
}

func (s *session) readSyntheticDir(offset uint64, r *reply, limit int) error {
	a, err := s.stat(s.tree.only)
	if err != nil {
		return err
	}
	entries := [...]dirEntry{
		{syntheticPath, 1, dirTypeDir, []byte(".")},
		{syntheticPath, 2, dirTypeDir, []byte("..")},
		{a.ino, 3, uint8(a.mode & typeMask >> 12), []byte(s.tree.onlyName)},
	}
	for _, e := range entries[min(offset, uint64(len(entries))):] {
		if len(r.b)+direntOverhead+len(e.name) > limit {
			break
		}
		s.putEntry(r, s.tree.root, e)
	}
	return nil
}
