package network

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A record says what it was told, and one of an earlier version, which says nothing
// of the hardware address, is read as if it did.
func TestRecord(t *testing.T) {
	s := store{filepath.Join(t.TempDir(), "bridge")}
	if err := os.MkdirAll(s.sandbox("a"), 0o700); err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr("10.77.0.10")
	want := MAC(macOf(addr))
	if err := s.save(&record{Result: Result{ID: "a", Address: addr, MAC: want}}); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(s.record("a"))
	if err != nil {
		t.Fatal(err)
	}
	line := `  "mac": "02:cb:0a:4d:00:0a",` + "\n"
	earlier := strings.Replace(string(written), line, "", 1)
	if earlier == string(written) {
		t.Fatalf("the record has no line %q:\n%s", line, written)
	}
	for _, content := range []string{string(written), earlier} {
		if err := os.WriteFile(s.record("a"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := s.load("a")
		if err != nil {
			t.Fatal(err)
		}
		if r.MAC.String() != want.String() || r.Address != addr {
			t.Errorf("got %s and %s, want %s and %s, of\n%s", r.MAC, r.Address, want, addr, content)
		}
	}
}
