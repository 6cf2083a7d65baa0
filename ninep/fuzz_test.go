package ninep

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// FuzzDecoder checks that no order of fields makes the decoder read past its
// message, or accept one that is not used up.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte{1, 0, 'a', 1, 2, 3, 4}, []byte{4, 2})
	f.Add([]byte{0xff, 0xff}, []byte{4})
	f.Add([]byte{}, []byte{0, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, body, shape []byte) {
		d := decoder{b: body}
		used := 0
		for _, s := range shape {
			size := []int{1, 2, 4, 8, 2}[s%5]
			if s%5 == 4 && used+2 <= len(body) {
				size += int(binary.LittleEndian.Uint16(body[used:]))
			}
			used += size
			switch s % 5 {
			case 0:
				d.u8()
			case 1:
				d.u16()
			case 2:
				d.u32()
			case 3:
				d.u64()
			case 4:
				d.str()
			}
		}
		if ok := d.done() == nil; ok != (used == len(body)) {
			t.Errorf("done says %v for %d bytes of %d", ok, used, len(body))
		}
	})
}

// FuzzSession runs whole conversations against a small tree. Whatever is sent,
// the session ends when the input does, nothing outside the tree changes, and
// every descriptor is closed.
func FuzzSession(f *testing.F) {
	var talk []byte
	say := func(typ uint8, body []byte) { talk = append(talk, frame(typ, 1, body)...) }
	say(msgTversion, fields(uint32(8192), protocolVersion))
	say(msgTattach, fields(uint32(0), noFid, "", "", uint32(0)))
	say(msgTwalk, walkFields(0, 1, "dir", "file"))
	say(msgTlopen, fields(uint32(1), uint32(openReadWrite)))
	say(msgTwrite, fields(uint32(1), uint64(0), uint32(3), []byte("abc")))
	say(msgTread, fields(uint32(1), uint64(0), uint32(100)))
	f.Add(talk)
	say(msgTwalk, walkFields(0, 2, "link", ".."))
	say(msgTrenameat, fields(uint32(0), "dir", uint32(0), ".."))
	say(msgTxattrwalk, fields(uint32(0), uint32(3), ""))
	say(msgTxattrcreate, fields(uint32(0), "user.x", uint64(1<<62), uint32(0)))
	say(msgTreaddir, fields(uint32(0), uint64(1<<62), uint32(0xffffffff)))
	say(msgTunlinkat, fields(uint32(0), "../outside", uint32(0)))
	say(msgTremove, fields(uint32(0)))
	f.Add(talk)
	f.Add(frame(msgTversion, 0xffff, fields(uint32(0xffffffff), "")))

	f.Fuzz(func(t *testing.T, input []byte) {
		// As root, a random chmod or mknod could outlive the test's directory.
		top := t.TempDir()
		dir := filepath.Join(top, "tree")
		if err := os.MkdirAll(filepath.Join(dir, "dir"), 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, "content", dir, "dir", "file")
		outside := writeFile(t, "secret", top, "outside")
		if err := os.Symlink("../outside", filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		tree := serveAt(t, dir, Dir, Options{MaxFids: 100})
		server, conn := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- tree.Serve(context.Background(), server) }()
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			_, _ = io.Copy(io.Discard, conn)
		}()
		// Frames get the size they have, so that fuzzing reaches past it.
		for rest := input; len(rest) >= headerSize; {
			size := int(binary.LittleEndian.Uint32(rest))
			if size < headerSize || size > len(rest) {
				size = len(rest)
			}
			if _, err := conn.Write(frame(rest[4], binary.LittleEndian.Uint16(rest[5:]), rest[headerSize:size])); err != nil {
				break
			}
			rest = rest[size:]
		}
		conn.Close()
		<-done
		<-drained
		if b, err := os.ReadFile(outside); err != nil || string(b) != "secret" {
			t.Errorf("outside the tree: %q, %v", b, err)
		}
		if left, _ := os.ReadDir(top); len(left) != 2 {
			t.Errorf("beside the tree: %v", left)
		}
	})
}
