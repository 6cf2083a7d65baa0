package ninep

import "golang.org/x/sys/unix"

var hostErrno = map[unix.Errno]errno{
	unix.ENODATA:   linuxENODATA,
	unix.ENOMEDIUM: 123,
}
