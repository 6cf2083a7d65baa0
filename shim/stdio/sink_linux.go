package stdio

import "golang.org/x/sys/unix"

// unreadIn is FIONREAD (pipe(7)), which both ends of a pipe answer alike.
func unreadIn(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}
