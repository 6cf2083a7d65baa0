package pf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// dnctlSays is a Control whose dnctl(8) says something, and a place for what it is
// told.
func dnctlSays(out string, err error) (Control, *strings.Builder) {
	told := &strings.Builder{}
	return Control{Run: func(_ context.Context, stdin string, argv ...string) ([]byte, error) {
		fmt.Fprintln(told, strings.Join(argv, " "))
		told.WriteString(stdin)
		return []byte(out), err
	}}, told
}

func TestSetPipe(t *testing.T) {
	for rate, want := range map[uint64]string{
		1:            "bw 1Byte/s queue 65536Bytes",
		2_000_000:    "bw 2000000Byte/s queue 200000Bytes",
		maxBandwidth: "bw 536870911Byte/s queue 1048576Bytes",
	} {
		c, told := dnctlSays("", nil)
		err := c.SetPipe(t.Context(), 40000, rate)
		if want := "/sbin/dnctl -q /dev/stdin\npipe 40000 config " + want + "\npipe 40001 config " + want + "\n"; err != nil || told.String() != want {
			t.Errorf("%d: %v, told\n%swant\n%s", rate, err, told, want)
		}
	}
	c, told := dnctlSays("", nil)
	if err := c.SetPipe(t.Context(), 40000, maxBandwidth+1); !errdefs.IsNotImplemented(err) || told.Len() > 0 {
		t.Errorf("more than dummynet counts: %v, told %q", err, told)
	}
}

func TestNoDummynet(t *testing.T) {
	for want, why := range map[string]error{
		"kldload dummynet": errors.New("exit status 71: Line 1: setsockopt(IP_DUMMYNET3): Protocol not available"),
		"dnctl(8)":         &fs.PathError{Op: "fork/exec", Path: dnctl, Err: fs.ErrNotExist},
	} {
		c, _ := dnctlSays("", why)
		if err := c.SetPipe(t.Context(), 40000, 1); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want what to do", why, err)
		}
	}
	c, _ := dnctlSays("", errors.New("exit status 65: Line 1: bandwidth too large"))
	if err := c.SetPipe(t.Context(), 40000, 1); err == nil || errdefs.IsFailedPrecondition(err) {
		t.Errorf("another error: %v", err)
	}
}

func TestCheckPipe(t *testing.T) {
	const out = `40000:   8.389 Mbit/s    0 ms burst 0 
q171072  104 KB 0 flows (1 buckets) sched 105536 weight 0 lmax 0 pri 0 droptail
 sched 105536 type FIFO flags 0x0 0 buckets 0 active
40001:   8.389 Mbit/s    0 ms burst 0 
q171073  104 KB 0 flows (1 buckets) sched 105537 weight 0 lmax 0 pri 0 droptail
 sched 105537 type FIFO flags 0x0 0 buckets 0 active
`
	first, _, _ := strings.Cut(out, "40001")
	for _, tc := range []struct {
		out  string
		rate uint64
		ok   bool
	}{{out, 1 << 20, true}, {out, 1 << 21, false}, {first, 1 << 20, false}, {"", 1 << 20, false}} {
		c, _ := dnctlSays(tc.out, nil)
		if err := c.CheckPipe(t.Context(), 40000, tc.rate); (err == nil) != tc.ok {
			t.Errorf("%d of %q: %v", tc.rate, tc.out, err)
		}
	}
	for rate, want := range map[uint64]string{1: "8.000 bit/s", 125: "1.000 Kbit/s", 1 << 20: "8.389 Mbit/s", maxBandwidth: "4.295 Gbit/s"} {
		if got := printedRate(rate); got != want {
			t.Errorf("%d: %s, want %s", rate, got, want)
		}
	}
}

func TestDeletePipe(t *testing.T) {
	gone := errors.New("exit status 1: dnctl: rule 1: setsockopt(IP_DUMMYNET3): Invalid argument")
	for out, ok := range map[string]bool{"": true, "40001:   8.389 Mbit/s    0 ms burst 0\n": false} {
		c := Control{Run: func(_ context.Context, _ string, argv ...string) ([]byte, error) {
			if argv[2] == "delete" {
				return nil, gone
			}
			return []byte(out), nil
		}}
		if err := c.DeletePipe(t.Context(), 40000); (err == nil) != ok {
			t.Errorf("with %q there afterwards: %v", out, err)
		}
	}
}
