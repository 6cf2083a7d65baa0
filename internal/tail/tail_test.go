package tail

import "testing"

func TestTailKeepsTheEnd(t *testing.T) {
	// Every way to cut the same text into writes leaves the same end.
	const text = "abcdefghijklmnopqrstuvwxyz"
	for _, max := range []int{1, 3, 7, 25, 26, 27} {
		for step := 1; step <= len(text); step++ {
			k := &Buffer{Max: max}
			for i := 0; i < len(text); i += step {
				part := text[i:min(i+step, len(text))]
				if n, err := k.Write([]byte(part)); n != len(part) || err != nil {
					t.Fatalf("write: %d, %v", n, err)
				}
			}
			if got, want := string(k.Bytes()), text[len(text)-min(max, len(text)):]; got != want {
				t.Errorf("max %d, writes of %d: %q, want %q", max, step, got, want)
			}
		}
	}
	if got := (&Buffer{Max: 3}).Bytes(); len(got) != 0 {
		t.Errorf("empty: %q", got)
	}
}
