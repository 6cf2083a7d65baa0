package network

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// pflogHeader is where the packet begins in what pflog(4) tells (PFLOG_HDRLEN in
// net/if_pflog.h), which has pf's action and the interface's name before.
const (
	pflogHeader = 72
	pflogAction = 2
	pflogIface  = 4
	pfDrop      = 1
)

// pflog listens to pflog0, by bpf(4).
func (r *rig) pflog() (bpf int, buf []byte) {
	r.t.Helper()
	// It may be there from another test.
	_, _ = run(r.t.Context(), "", ifconfig, "pflog0", "create")
	r.run(ifconfig, "pflog0", "up")
	bpf, err := unix.Open("/dev/bpf", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { unix.Close(bpf) })
	ioctl := func(what string, request uintptr, arg unsafe.Pointer) {
		r.t.Helper()
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(bpf), request, uintptr(arg)); errno != 0 {
			r.t.Fatal(os.NewSyscallError(what, errno))
		}
	}
	var ifreq [32]byte
	copy(ifreq[:], "pflog0")
	on, size, timeout := uint32(1), uint32(0), unix.Timeval{Sec: 1}
	ioctl("BIOCSETIF", unix.BIOCSETIF, unsafe.Pointer(&ifreq))
	ioctl("BIOCIMMEDIATE", unix.BIOCIMMEDIATE, unsafe.Pointer(&on))
	ioctl("BIOCSRTIMEOUT", unix.BIOCSRTIMEOUT, unsafe.Pointer(&timeout))
	ioctl("BIOCGBLEN", unix.BIOCGBLEN, unsafe.Pointer(&size))
	return bpf, make([]byte, size)
}

// What is stopped is logged, by the interface that it was stopped at.
func TestStoppedIsLogged(t *testing.T) {
	r := newRig(t, policy.Policy{})
	g := r.guest("g", nil)
	bpf, buf := r.pflog()
	for why, tc := range map[string]struct {
		packet []byte
		at     string
	}{
		"denied":  {ipv4(g.Address, r.net.cfg.Gateway, unix.IPPROTO_UDP, 0, udp(4000, 99, "denied")), r.net.cfg.Bridge},
		"spoofed": {ipv4(r.net.cfg.Last, r.net.cfg.Gateway, unix.IPPROTO_UDP, 0, udp(4000, 99, "spoofed")), g.Tap},
	} {
		logged := func() error {
			if _, err := g.wire.Write(frame(macOf(g.Gateway), g.MAC, ip, tc.packet)); err != nil {
				return err
			}
			n, err := unix.Read(bpf, buf)
			if err != nil {
				return os.NewSyscallError("read", err)
			}
			var seen []string
			for b := buf[:n]; len(b) > int(unsafe.Sizeof(unix.BpfHdr{})); {
				h := (*unix.BpfHdr)(unsafe.Pointer(&b[0]))
				end := int(h.Hdrlen) + int(h.Caplen)
				entry := b[h.Hdrlen:end]
				name := unix.ByteSliceToString(entry[pflogIface:][:unix.IFNAMSIZ])
				if entry[pflogAction] == pfDrop && name == tc.at && bytes.Equal(entry[pflogHeader:], tc.packet) {
					return nil
				}
				seen = append(seen, fmt.Sprintf("%s %x", name, entry))
				// BPF_WORDALIGN
				b = b[min(len(b), (end+7)&^7):]
			}
			return fmt.Errorf("%s packets: %q, want %x at %s", why, seen, tc.packet, tc.at)
		}
		deadline := time.Now().Add(patience)
		for err := logged(); err != nil; err = logged() {
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
}
