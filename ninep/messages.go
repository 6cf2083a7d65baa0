package ninep

import (
	"encoding/binary"
	"errors"
)

// Message types, from enum p9_msg_t in Linux's include/net/9p/9p.h. A reply's
// type is its request's plus one.
const (
	msgRlerror      = 7
	msgTstatfs      = 8
	msgTlopen       = 12
	msgTlcreate     = 14
	msgTsymlink     = 16
	msgTmknod       = 18
	msgTrename      = 20
	msgTreadlink    = 22
	msgTgetattr     = 24
	msgTsetattr     = 26
	msgTxattrwalk   = 30
	msgTxattrcreate = 32
	msgTreaddir     = 40
	msgTfsync       = 50
	msgTlock        = 52
	msgTgetlock     = 54
	msgTlink        = 70
	msgTmkdir       = 72
	msgTrenameat    = 74
	msgTunlinkat    = 76
	msgTversion     = 100
	msgTauth        = 102
	msgTattach      = 104
	msgTflush       = 108
	msgTwalk        = 110
	msgTread        = 116
	msgTwrite       = 118
	msgTclunk       = 120
	msgTremove      = 122
)

const (
	protocolVersion = "9P2000.L"
	unknownVersion  = "unknown"

	noFid uint32 = ^uint32(0)
	noUID uint32 = ^uint32(0)

	// maxWalk is P9_MAXWELEM: names in one Twalk.
	maxWalk = 16
	// maxName is NAME_MAX of both hosts.
	maxName = 255

	// headerSize is size[4] type[1] tag[2].
	headerSize = 7
	// dataHeaderSize is what precedes the data of Rread, Rreaddir: count[4].
	dataHeaderSize = headerSize + 4
	// ioHeaderSize is P9_IOHDRSZ: the client's own allowance for the largest
	// header around data, of a Twrite.
	ioHeaderSize = 24

	// minMsize is what Linux's client insists on. maxMsize is the most that
	// its trans=fd asks for (MAX_SOCK_BUF in net/9p/trans_fd.c).
	minMsize = 4096
	maxMsize = 1 << 20
	// helloMsize bounds messages before a size has been agreed on.
	helloMsize = 8192
)

// Bits of a qid's type (P9_QTDIR, P9_QTSYMLINK).
const (
	qidDir     = 0x80
	qidSymlink = 0x02
	qidSize    = 13
)

// qid is the server's name for a file: two files are the same one if and only
// if their qids are equal.
type qid struct {
	typ     uint8
	version uint32
	path    uint64
}

// errMalformed ends the session: the peer does not speak the protocol, so
// nothing that it sends afterwards can be trusted to mean what it says.
var errMalformed = errors.New("malformed 9p message")

// decoder takes a message body apart. Reading past the end yields zero values
// and is remembered: callers read all fields, then ask done once.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if n > len(d.b) {
		d.bad, d.b = true, nil
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) u8() uint8 {
	if p := d.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *decoder) u16() uint16 {
	if p := d.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if p := d.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if p := d.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

func (d *decoder) str() string { return string(d.take(int(d.u16()))) }

// done reports whether the body held exactly the fields that were read.
func (d *decoder) done() error {
	if d.bad || len(d.b) != 0 {
		return errMalformed
	}
	return nil
}

// reply is a message under construction. Its buffer comes from the pool and
// starts with room for the header, which finish fills in.
type reply struct {
	b []byte
}

func newReply() *reply { return &reply{b: getBuffer(smallBuffer)[:headerSize]} }

// reserve exchanges the empty reply's buffer for one that holds n bytes after
// the header.
func (r *reply) reserve(n int) {
	if cap(r.b) >= headerSize+n {
		return
	}
	putBuffer(r.b)
	r.b = getBuffer(headerSize + n)[:headerSize]
}

func (r *reply) u8(v uint8)   { r.b = append(r.b, v) }
func (r *reply) u16(v uint16) { r.b = binary.LittleEndian.AppendUint16(r.b, v) }
func (r *reply) u32(v uint32) { r.b = binary.LittleEndian.AppendUint32(r.b, v) }
func (r *reply) u64(v uint64) { r.b = binary.LittleEndian.AppendUint64(r.b, v) }

func (r *reply) str(s string) {
	r.u16(uint16(len(s)))
	r.b = append(r.b, s...)
}

func (r *reply) qid(q qid) {
	r.u8(q.typ)
	r.u32(q.version)
	r.u64(q.path)
}

// fail turns the reply into an Rlerror body.
func (r *reply) fail(e errno) {
	r.b = r.b[:headerSize]
	r.u32(uint32(e))
}

func (r *reply) finish(typ uint8, tag uint16) {
	binary.LittleEndian.PutUint32(r.b, uint32(len(r.b)))
	r.b[4] = typ
	binary.LittleEndian.PutUint16(r.b[5:], tag)
}
