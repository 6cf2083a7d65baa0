package agentproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
)

func TestOpenStreamMeetsReadPreface(t *testing.T) {
	for _, c := range []struct {
		name   string
		id     string
		accept bool
		want   error
	}{
		{"accepted", "container/stdout", true, nil},
		{"refused", "container/stdout", false, ErrStreamRefused},
		{"shortest", "x", true, nil},
		{"longest", strings.Repeat("x", maxStreamID), true, nil},
		{"not ASCII", "naïve\x00id", true, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			host, guest := net.Pipe()
			defer host.Close()
			opened := make(chan error, 1)
			go func() { opened <- OpenStream(host, c.id) }()
			id, err := ReadPreface(guest)
			if err != nil || id != c.id {
				t.Fatalf("read %q, %v; want %q", id, err, c.id)
			}
			if err := AnswerPreface(guest, c.accept); err != nil {
				t.Fatal(err)
			}
			if err := <-opened; !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if !c.accept {
				return
			}
			// Nothing of the stream itself has been consumed.
			go guest.Write([]byte("data"))
			buf := make([]byte, 4)
			if _, err := io.ReadFull(host, buf); err != nil || string(buf) != "data" {
				t.Errorf("after the preface came %q, %v", buf, err)
			}
		})
	}
}

func TestReadPrefaceRefusesHostilePeers(t *testing.T) {
	announce := func(n uint16, id string) string {
		return prefaceMagic + string(binary.BigEndian.AppendUint16(nil, n)) + id
	}
	for name, in := range map[string]string{
		"nothing":             "",
		"wrong magic":         "GET / HTTP/1.1\r\n\r\n",
		"other version":       "BHS2\x00\x01x",
		"cut in the magic":    "BHS",
		"cut in the length":   "BHS1\x00",
		"empty id":            announce(0, ""),
		"id too long":         announce(maxStreamID+1, strings.Repeat("x", maxStreamID+1)),
		"longest length":      announce(0xffff, "x"),
		"less than announced": announce(8, "short"),
	} {
		t.Run(name, func(t *testing.T) {
			r := bytes.NewReader([]byte(in))
			if id, err := ReadPreface(r); err == nil {
				t.Fatalf("accepted as %q", id)
			}
		})
	}
}

// A peer that announces a long id gets no memory for it before it is checked.
func TestReadPrefaceReadsNoFurtherThanTheHead(t *testing.T) {
	r := strings.NewReader(prefaceMagic + "\xff\xff" + strings.Repeat("x", 0xffff))
	if _, err := ReadPreface(r); err == nil {
		t.Fatal("accepted")
	}
	if r.Len() != 0xffff {
		t.Errorf("%d bytes of the id were read", 0xffff-r.Len())
	}
}

// answering is a connection with an agent that has answered already.
type answering struct {
	io.Reader
	io.Writer
}

func TestOpenStreamWithHostileAgents(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		want   error
	}{
		"closes":          {"", io.EOF},
		"unknown answer":  {"\xff", ErrStreamRefused},
		"printable zero":  {"0", ErrStreamRefused},
		"refuses, chatty": {"\x01no", ErrStreamRefused},
	} {
		if err := OpenStream(answering{strings.NewReader(c.answer), io.Discard}, "id"); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for _, id := range []string{"", strings.Repeat("x", maxStreamID+1)} {
		var sent bytes.Buffer
		if err := OpenStream(answering{strings.NewReader("\x00"), &sent}, id); err == nil || sent.Len() != 0 {
			t.Errorf("id of %d bytes: %v, and %d bytes were sent", len(id), err, sent.Len())
		}
	}
}

func TestStreamURI(t *testing.T) {
	for _, id := range []string{"a", "pod/container/exec-1/stdout", "100% ?#&:", "naïve", "//x", strings.Repeat("%", maxStreamID)} {
		uri := StreamURI(id)
		if got, err := ParseStreamURI(uri); err != nil || got != id {
			t.Errorf("%q became %q became %q, %v", id, uri, got, err)
		}
	}
	for _, bad := range []string{"", "stream", "stream:", "file:/x", "/run/fifo", "stream:%zz", "Stream:x", "stream:" + strings.Repeat("x", maxStreamID+1)} {
		if id, err := ParseStreamURI(bad); err == nil {
			t.Errorf("%q was taken for stream %q", bad, id)
		}
	}
}
