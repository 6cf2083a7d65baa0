package sandbox

import (
	"os"

	"golang.org/x/sys/unix"
)

// isNetNS asks the kernel (ioctl_ns(2)).
func isNetNS(f *os.File) bool {
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	return err == nil && kind == unix.CLONE_NEWNET
}
