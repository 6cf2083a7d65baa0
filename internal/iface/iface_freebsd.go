package iface

import (
	"bytes"
	"errors"
	"net"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Create makes an interface of the kind that its name begins with. One of that name
// that is there already is fs.ErrExist; ifconfig(8) would take it.
func Create(name string) error {
	return ioctl(name, "SIOCIFCREATE2", unix.SIOCIFCREATE2, nil)
}

// Describe says what an interface is for.
func Describe(name, text string) error {
	return ioctl(name, "SIOCSIFDESCR", unix.SIOCSIFDESCR, append([]byte(text), 0))
}

// Description is what Describe has said of an interface, "" if nothing. unix.ENXIO if
// there is no such interface.
func Description(name string) (string, error) {
	// The kernel's limit is net.ifdescr_maxlen, 1024 by default.
	buf := make([]byte, 1024)
	if err := ioctl(name, "SIOCGIFDESCR", unix.SIOCGIFDESCR, buf); err != nil {
		// No description, or one that is not ours.
		if errors.Is(err, unix.ENOMSG) || errors.Is(err, unix.ENAMETOOLONG) {
			return "", nil
		}
		return "", err
	}
	text, _, _ := bytes.Cut(buf, []byte{0})
	return string(text), nil
}

// IsUp says whether an interface is up. One that is not there is not.
func IsUp(name string) (bool, error) {
	all, err := net.Interfaces()
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(all, func(i net.Interface) bool { return i.Name == name })
	return i >= 0 && all[i].Flags&net.FlagUp != 0, nil
}

// ifreq is struct ifreq with its union as ifr_buffer (net/if.h).
type ifreq struct {
	name   [unix.IFNAMSIZ]byte
	length uintptr
	buffer *byte
}

// ioctl makes an interface ioctl with buf as its buffer.
func ioctl(name, op string, request uintptr, buf []byte) error {
	s, err := unix.Socket(unix.AF_LOCAL, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(s)
	req := &ifreq{length: uintptr(len(buf)), buffer: unsafe.SliceData(buf)}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), request, uintptr(unsafe.Pointer(req)))
	runtime.KeepAlive(buf)
	if errno != 0 {
		return os.NewSyscallError(op, errno)
	}
	return nil
}
