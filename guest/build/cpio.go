package build

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
)

// tree is the contents of an initramfs by path, without a leading slash. What
// a cpio archive would have beyond these (owners, times, inode and device
// numbers) is made up by bytes, always in the same way.
type tree map[string]node

type node struct {
	mode uint32 // type and permissions as in stat(2)
	data []byte
}

const (
	modeDir  uint32 = 0o040000 // S_IFDIR
	modeFile uint32 = 0o100000 // S_IFREG
)

func (t tree) dir(name string, perm uint32) {
	t.parents(name)
	t[name] = node{mode: modeDir | perm}
}

func (t tree) file(name string, perm uint32, data []byte) {
	t.parents(name)
	t[name] = node{mode: modeFile | perm, data: data}
}

// parents adds the directories above name that are not there yet: the kernel
// does not make them.
func (t tree) parents(name string) {
	for p := path.Dir(name); p != "."; p = path.Dir(p) {
		if _, ok := t[p]; !ok {
			t[p] = node{mode: modeDir | 0o755}
		}
	}
}

const (
	cpioMagic   = "070701"
	cpioTrailer = "TRAILER!!!"
)

// bytes is t as a "newc" cpio archive, which is what the kernel unpacks
// (Documentation/driver-api/early-userspace/buffer-format.rst). Entries are in
// the order of their names, which puts a directory before what is in it.
func (t tree) bytes() []byte {
	var w bytes.Buffer
	for i, name := range slices.Sorted(maps.Keys(t)) {
		writeEntry(&w, uint32(i+1), name, t[name])
	}
	writeEntry(&w, 0, cpioTrailer, node{})
	return w.Bytes()
}

func writeEntry(w *bytes.Buffer, inode uint32, name string, n node) {
	links := 1
	if n.mode&modeDir != 0 {
		links = 2
	}
	w.WriteString(cpioMagic)
	for _, field := range [...]uint32{
		inode, n.mode,
		0, 0, // owner and group: root
		uint32(links),
		0, // modification time
		uint32(len(n.data)),
		0, 0, 0, 0, // device numbers of the file system and of the node
		uint32(len(name) + 1),
		0, // checksum: not in this variant
	} {
		fmt.Fprintf(w, "%08x", field)
	}
	w.WriteString(name)
	w.WriteByte(0)
	const header = len(cpioMagic) + 13*8
	pad(w, header+len(name)+1)
	w.Write(n.data)
	pad(w, len(n.data))
}

// pad fills up n bytes to a multiple of four.
func pad(w *bytes.Buffer, n int) {
	const zeros = "\x00\x00\x00"
	w.WriteString(zeros[:-n&3])
}
