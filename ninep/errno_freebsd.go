package ninep

import "golang.org/x/sys/unix"

var hostErrno = map[unix.Errno]errno{
	unix.ENOATTR: linuxENODATA,
	// ZFS answers this for a block whose checksum is wrong.
	unix.EINTEGRITY:  linuxEIO,
	unix.ENOTCAPABLE: 1,
}
