package pf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Pipe is two pipes of dummynet(4), by the number of the first: what a guest sends
// goes through that, and what it is sent through the next. 0 is none.
//
// The rules that send packets through them are for frames, on the bridge. They are
// asked for each frame, so that a pipe that comes or goes holds for open flows;
// pf's other rules are asked at a flow's beginning. And a packet goes through pipes
// of frames as often as such a rule says, so that the sender's limit and the
// receiver's both count; of the others' pipes only the first
// (PF_MTAG_FLAG_DUMMYNETED in sys/netpfil/pf/pf.c). On a tap a pipe would lead
// around the bridge and its rules: dummynet hands what has waited to IP.
type Pipe uint16

const dnctl = "/sbin/dnctl"

// maxBandwidth is the most that dummynet can be told, in bytes a second: its links
// have 32 bits for bits a second (struct dn_link in sys/netinet/ip_dummynet.h).
const maxBandwidth = math.MaxUint32 / 8

// A pipe's queue, in bytes, has room for a tenth of a second, and between these: less
// does not last from one of dummynet's ticks to the next, which are the kernel's (10 ms
// in a virtual machine), and more dummynet does not take
// (net.inet.ip.dummynet.pipe_byte_limit).
const minQueue, maxQueue = 64 << 10, 1 << 20

// SetPipe makes the pipes so wide, in bytes a second, and makes them if they are not
// there. What goes through them is not disturbed. errdefs.ErrNotImplemented for more
// than dummynet can count, errdefs.ErrFailedPrecondition if it is not there.
func (c Control) SetPipe(ctx context.Context, p Pipe, rate uint64) error {
	if rate > maxBandwidth {
		return fmt.Errorf("a bandwidth of %d bytes a second: dummynet(4) has at most %d: %w", rate, maxBandwidth, errdefs.ErrNotImplemented)
	}
	queue := min(max(rate/10, minQueue), maxQueue)
	var commands strings.Builder
	for i := range Pipe(2) {
		fmt.Fprintf(&commands, "pipe %d config bw %dByte/s queue %dBytes\n", p+i, rate, queue)
	}
	if _, err := c.Run(ctx, commands.String(), dnctl, "-q", "/dev/stdin"); err != nil {
		return noDummynet(fmt.Errorf("pipes %d and %d: %w", p, p+1, err))
	}
	return nil
}

// noDummynet says what to do about an error, if that is what it is about.
func noDummynet(err error) error {
	switch {
	case strings.Contains(err.Error(), "Protocol not available"):
		return fmt.Errorf(`a bandwidth needs dummynet(4) (kldload dummynet, and dummynet_load="YES" in /boot/loader.conf): %w: %w`,
			err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("a bandwidth needs dnctl(8), of the base system's package ipfw: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}

// rates are what dnctl(8) prints of the pipes' bandwidths, by those of the two that
// are there. A pipe's entry begins with its number and that (list_pipes in
// sbin/ipfw/dummynet.c):
//
//	40000:   8.389 Mbit/s    0 ms burst 0
func (c Control) rates(ctx context.Context, p Pipe) ([]string, error) {
	out, err := c.Run(ctx, "", dnctl, "pipe", "list", fmt.Sprint(p), fmt.Sprint(p+1))
	if err != nil {
		return nil, noDummynet(fmt.Errorf("pipes %d and %d: %w", p, p+1, err))
	}
	var rates []string
	for line := range strings.Lines(string(out)) {
		number, rest, _ := strings.Cut(line, ":")
		words := strings.Fields(rest)
		if slices.Contains([]string{fmt.Sprintf("%05d", p), fmt.Sprintf("%05d", p+1)}, number) && len(words) >= 2 {
			rates = append(rates, words[0]+" "+words[1])
		}
	}
	return rates, nil
}

// HasPipe says whether one of the pipes is there.
func (c Control) HasPipe(ctx context.Context, p Pipe) (bool, error) {
	rates, err := c.rates(ctx, p)
	return len(rates) > 0, err
}

// CheckPipe is an error unless the pipes are so wide.
func (c Control) CheckPipe(ctx context.Context, p Pipe, rate uint64) error {
	rates, err := c.rates(ctx, p)
	if err != nil {
		return err
	}
	if want := printedRate(rate); !slices.Equal(rates, []string{want, want}) {
		return fmt.Errorf("pipes %d and %d are %q, want %s", p, p+1, rates, want)
	}
	return nil
}

// printedRate is how dnctl prints a bandwidth.
func printedRate(rate uint64) string {
	bits := float64(rate * 8)
	for _, unit := range []struct {
		name string
		of   float64
	}{{"Gbit/s", 1e9}, {"Mbit/s", 1e6}, {"Kbit/s", 1e3}} {
		if bits >= unit.of {
			return fmt.Sprintf("%.3f %s", bits/unit.of, unit.name)
		}
	}
	return fmt.Sprintf("%.3f bit/s", bits)
}

// DeletePipe removes the pipes, with what waits in them. Those that are not there are
// no error.
func (c Control) DeletePipe(ctx context.Context, p Pipe) error {
	_, err := c.Run(ctx, "", dnctl, "pipe", "delete", fmt.Sprint(p), fmt.Sprint(p+1))
	if err == nil {
		return nil
	}
	// Of two that are not there, or of one.
	if there, herr := c.HasPipe(ctx, p); herr != nil || there {
		return errors.Join(fmt.Errorf("delete pipes %d and %d: %w", p, p+1, err), herr)
	}
	return nil
}

// shapes are the lines by which frames find the pipes, in both directions.
func (s Sandbox) shapes() []string {
	return []string{
		fmt.Sprintf("ether pass in quick on %s proto 0x0800 l3 from %s to any dnpipe %d", s.Bridge, s.Address, s.Pipe),
		fmt.Sprintf("ether pass out quick on %s proto 0x0800 l3 from any to %s dnpipe %d", s.Bridge, s.Address, s.Pipe+1),
	}
}

// checkShapes is an error unless frames find the pipes by what pfctl prints of the
// network's rules for them.
func (s Sandbox) checkShapes(printed []byte) error {
	for i := range Pipe(2) {
		end := fmt.Sprintf(" dnpipe %d", s.Pipe+i)
		if !slices.ContainsFunc(strings.Split(string(printed), "\n"), func(line string) bool { return strings.HasSuffix(line, end) }) {
			return fmt.Errorf("anchor %s sends nothing through pipe %d", NetworkAnchor(s.Bridge), s.Pipe+i)
		}
	}
	return nil
}
