package build

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

func TestCpioBytes(t *testing.T) {
	tr := tree{}
	tr.file("etc/list", 0o644, []byte("12345"))
	tr.dir("tmp", 0o1777)
	zeros := strings.Repeat("00000000", 4)
	want := "" +
		// magic, inode, mode, uid, gid, links, mtime, size, devices, name size, checksum
		"070701" + "00000001" + "000041ed" + "00000000" + "00000000" + "00000002" + "00000000" + "00000000" + zeros + "00000004" + "00000000" +
		"etc\x00" + "\x00\x00" +
		"070701" + "00000002" + "000081a4" + "00000000" + "00000000" + "00000001" + "00000000" + "00000005" + zeros + "00000009" + "00000000" +
		"etc/list\x00" + "\x00" +
		"12345" + "\x00\x00\x00" +
		"070701" + "00000003" + "000043ff" + "00000000" + "00000000" + "00000002" + "00000000" + "00000000" + zeros + "00000004" + "00000000" +
		"tmp\x00" + "\x00\x00" +
		"070701" + "00000000" + "00000000" + "00000000" + "00000000" + "00000001" + "00000000" + "00000000" + zeros + "0000000b" + "00000000" +
		"TRAILER!!!\x00" + "\x00\x00\x00"
	if got := string(tr.bytes()); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestTreeMakesParents(t *testing.T) {
	tr := tree{}
	tr.dir("a", 0o700)
	tr.file("a/b/c/d", 0o644, nil)
	for name, mode := range map[string]uint32{"a": 0o040700, "a/b": 0o040755, "a/b/c": 0o040755, "a/b/c/d": 0o100644} {
		if tr[name].mode != mode {
			t.Errorf("%s has mode %o, want %o", name, tr[name].mode, mode)
		}
	}
	if len(tr) != 4 {
		t.Errorf("%d entries, want 4", len(tr))
	}
}

// readCpio reads newc archives that follow each other. It shares nothing with
// the writer.
func readCpio(archive []byte) (tree, error) {
	t := tree{}
	align := func(n int) int { return (n + 3) / 4 * 4 }
	for at := 0; at < len(archive); {
		if len(archive) < at+110 || string(archive[at:at+6]) != "070701" {
			return nil, fmt.Errorf("no entry at %d", at)
		}
		field := func(i int) int {
			n, err := strconv.ParseUint(string(archive[at+6+8*i:at+14+8*i]), 16, 32)
			if err != nil {
				return -1
			}
			return int(n)
		}
		size, nameSize := field(6), field(11)
		start := align(at + 110 + nameSize)
		if size < 0 || nameSize < 1 || len(archive) < align(start+size) {
			return nil, fmt.Errorf("entry at %d: size %d, name size %d", at, size, nameSize)
		}
		name := string(archive[at+110 : at+110+nameSize-1])
		if name != "TRAILER!!!" {
			t[name] = node{mode: uint32(field(1)), data: archive[start : start+size]}
		}
		at = align(start + size)
	}
	return t, nil
}
