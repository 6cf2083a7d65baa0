package link

import "testing"

func TestWhoseTap(t *testing.T) {
	for _, tc := range []struct {
		what        string
		receipt     tapReceipt
		description string
		up, want    bool
	}{
		{"marked", tapReceipt{Mark: "a"}, "a", true, true},
		{"another's", tapReceipt{Mark: "a"}, "b", false, false},
		{"one that was marked, and is not", tapReceipt{Mark: "a"}, "", false, false},
		{"not marked yet", tapReceipt{Mark: "a", New: true}, "", false, true},
		{"marked, which its maker did not live to write down", tapReceipt{Mark: "a", New: true}, "a", false, true},
		{"another's, with a receipt that is new", tapReceipt{Mark: "a", New: true}, "b", false, false},
		{"one that is used, and nobody's", tapReceipt{Mark: "a", New: true}, "", true, false},
	} {
		if got := tc.receipt.owns(tc.description, tc.up); got != tc.want {
			t.Errorf("%s: ours: %v", tc.what, got)
		}
	}
}
