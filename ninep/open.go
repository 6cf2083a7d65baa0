package ninep

import (
	"math"
	"sync"

	"golang.org/x/sys/unix"
)

// Open flags of the protocol (P9_DOTL_* in include/net/9p/9p.h) that mean
// something to the server.
const (
	openAccessMask = 0o3
	openWriteOnly  = 0o1
	openReadWrite  = 0o2
	openExclusive  = 0o200
	openTruncate   = 0o1000
	openAppend     = 0o2000
	openDataSync   = 0o10000
	openDirectory  = 0o200000
	openSync       = 0o4000000
)

// openFile is a fid's open descriptor.
type openFile struct {
	fd       int
	node     *node
	owned    bool // node is held by this openFile, not only by the fid
	writable bool
	flags    uint32     // it was opened with, as the protocol has them
	dir      *dirStream // for directories
}

func (f *openFile) close() {
	closeFD(f.fd)
	if f.owned {
		f.node.release()
	}
}

// hostFlags translates flags. What is left out either has been dealt with by
// the client's kernel (O_CREAT, O_NOFOLLOW, O_CLOEXEC, O_NONBLOCK), or would
// make the host treat buffers or times in ways that the client cannot see
// (O_DIRECT, O_NOATIME).
func hostFlags(flags uint32) (host int, writable bool, err error) {
	switch flags & openAccessMask {
	case 0:
		host = unix.O_RDONLY
	case openWriteOnly:
		host, writable = unix.O_WRONLY, true
	case openReadWrite:
		host, writable = unix.O_RDWR, true
	default:
		return 0, false, linuxEINVAL
	}
	for _, f := range [...]struct {
		linux uint32
		host  int
	}{
		{openTruncate, unix.O_TRUNC},
		{openAppend, unix.O_APPEND},
		{openDataSync, hostDataSync},
		{openSync, unix.O_SYNC},
	} {
		if flags&f.linux == f.linux {
			host |= f.host
		}
	}
	return host, writable, nil
}

// open opens n's file for I/O. Only regular files and directories: a FIFO
// could block for ever, and a device node would reach the host's device.
func (s *session) open(n *node, flags uint32) (*openFile, error) {
	host, writable, err := hostFlags(flags)
	if err != nil {
		return nil, err
	}
	changes := writable || flags&openTruncate != 0
	switch n.typ {
	case typeDir:
		if changes {
			return nil, linuxEISDIR
		}
		host = unix.O_RDONLY
	case typeRegular:
		if flags&openDirectory != 0 {
			return nil, linuxENOTDIR
		}
	case typeSymlink:
		return nil, linuxELOOP
	default:
		return nil, linuxENXIO
	}
	if changes && s.tree.opts.ReadOnly {
		return nil, linuxEROFS
	}
	file := &openFile{fd: -1, node: n, writable: writable, flags: flags}
	if n.typ == typeDir {
		file.dir = &dirStream{}
	}
	if n.synthetic() {
		return file, nil
	}
	fd, err := s.pins.pin(n)
	if err != nil {
		return nil, err
	}
	defer s.pins.unpin(n)
	file.fd, err = hostReopen(fd, host)
	if err != nil {
		return nil, err
	}
	// There are regular files whose reading waits for something to happen
	// (/proc/kmsg, trace_pipe of tracefs): for the client, and then for the end of
	// the session, for ever. Set only now, so that the opening still waits for the
	// holder of a lease.
	if err := unix.SetNonblock(file.fd, true); err != nil {
		closeFD(file.fd)
		return nil, err
	}
	return file, nil
}

// lopen opens a fid: fid[4] flags[4].
func (s *session) lopen(d *decoder, r *reply) error {
	id, flags := d.u32(), d.u32()
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
	a, err := s.stat(f.node)
	if err != nil {
		return err
	}
	file, err := s.open(f.node, flags)
	if err != nil {
		return err
	}
	return s.installOpen(f, file, s.qidOf(f.node, a), r)
}

// installOpen gives f its open file and answers Tlopen and Tlcreate.
func (s *session) installOpen(f *fid, file *openFile, q qid, r *reply) error {
	if !f.use.CompareAndSwap(nil, &fidUse{file: file}) {
		file.close()
		return linuxEBADF
	}
	r.qid(q)
	r.u32(s.ioUnit())
	return nil
}

// ioUnit is the most data that fits into a message, in whole pages.
func (s *session) ioUnit() uint32 {
	n := s.msize - ioHeaderSize
	if n > 4096 {
		n &^= 4095
	}
	return n
}

// read answers Tread: fid[4] offset[8] count[4].
func (s *session) read(d *decoder, r *reply) error {
	id, offset, count := d.u32(), d.u64(), d.u32()
	if err := d.done(); err != nil {
		return err
	}
	f, err := s.fids.acquireAny(id)
	if err != nil {
		return err
	}
	defer s.put(f)
	if offset > math.MaxInt64 {
		return linuxEINVAL
	}
	count = min(count, s.msize-dataHeaderSize)
	if u := f.use.Load(); u != nil && u.xattrRead != nil {
		data := u.xattrRead.data
		data = data[min(offset, uint64(len(data))):]
		data = data[:min(int(count), len(data))]
		r.reserve(4 + len(data))
		r.u32(uint32(len(data)))
		r.b = append(r.b, data...)
		return nil
	}
	file, err := f.file()
	if err != nil {
		return err
	}
	if file.dir != nil {
		return linuxEISDIR
	}
	r.reserve(4 + int(count))
	n, err := pread(file.fd, r.b[dataHeaderSize:dataHeaderSize+int(count)], int64(offset))
	if err != nil {
		return err
	}
	r.u32(uint32(n))
	r.b = r.b[:dataHeaderSize+n]
	return nil
}

// write answers Twrite: fid[4] offset[8] count[4] data[count].
func (s *session) write(d *decoder, r *reply) error {
	id, offset, count := d.u32(), d.u64(), d.u32()
	data := d.take(int(min(count, maxMsize)))
	if err := d.done(); err != nil || uint32(len(data)) != count {
		return errMalformed
	}
	f, err := s.fids.acquireAny(id)
	if err != nil {
		return err
	}
	defer s.put(f)
	if u := f.use.Load(); u != nil && u.xattrWrite != nil {
		if err := u.xattrWrite.write(offset, data); err != nil {
			return err
		}
		r.u32(count)
		return nil
	}
	file, err := f.file()
	if err != nil {
		return err
	}
	if !file.writable {
		return linuxEBADF
	}
	if offset > math.MaxInt64-uint64(count) {
		return linuxEFBIG
	}
	if err := dropPrivilegeBits(f, file); err != nil {
		return err
	}
	n, err := pwrite(file.fd, data, int64(offset))
	if err != nil && n == 0 {
		return err
	}
	r.u32(uint32(n))
	return nil
}

// dropPrivilegeBits removes setuid and setgid when somebody else than root
// writes: the client's kernel leaves that to the server when it does not cache,
// and the host's kernel does not do it for a privileged process.
func dropPrivilegeBits(f *fid, file *openFile) error {
	if f.uid == 0 || f.uid == noUID {
		return nil
	}
	a, err := hostStat(file.fd)
	if err != nil {
		return err
	}
	kept := a.mode &^ modeSetuid
	// setgid without group execution is not a privilege.
	if a.mode&modeExecGrp != 0 {
		kept &^= modeSetgid
	}
	if kept == a.mode {
		return nil
	}
	return hostChmod(file.fd, kept&modeBits)
}

// fsync answers Tfsync: fid[4] datasync[4].
func (s *session) fsync(d *decoder, r *reply) error {
	id, dataOnly := d.u32(), d.u32()
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
	if file.fd < 0 {
		return nil
	}
	if dataOnly != 0 {
		return fdatasync(file.fd)
	}
	return ignoreEINTR(func() error { return unix.Fsync(file.fd) })
}

// dirStream is an open directory's position in the host's stream of entries.
// Reading at a position moves it, so that one request at a time may.
type dirStream struct {
	mu  sync.Mutex
	pos int64
}
