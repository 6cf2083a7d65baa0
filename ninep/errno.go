package ninep

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// errno is an error number of Linux, whatever the host: it is what Rlerror
// carries. The numbers are those of include/uapi/asm-generic/errno-base.h and
// errno.h, which every architecture that this project runs guests on uses.
type errno uint32

func (e errno) Error() string { return fmt.Sprintf("linux errno %d", uint32(e)) }

const (
	linuxENOENT       errno = 2
	linuxEIO          errno = 5
	linuxENXIO        errno = 6
	linuxE2BIG        errno = 7
	linuxEBADF        errno = 9
	linuxENOMEM       errno = 12
	linuxEEXIST       errno = 17
	linuxENOTDIR      errno = 20
	linuxEISDIR       errno = 21
	linuxEINVAL       errno = 22
	linuxENFILE       errno = 23
	linuxEFBIG        errno = 27
	linuxEROFS        errno = 30
	linuxENAMETOOLONG errno = 36
	linuxENOLCK       errno = 37
	linuxELOOP        errno = 40
	linuxENODATA      errno = 61
	linuxEMSGSIZE     errno = 90
	linuxEOPNOTSUPP   errno = 95
	linuxESTALE       errno = 116
)

// linuxErrno gives Linux's number for each error that a file operation can
// return on a host. Those that only one host knows are in its errno file.
var linuxErrno = map[unix.Errno]errno{
	unix.EPERM:        1,
	unix.ENOENT:       linuxENOENT,
	unix.EINTR:        4,
	unix.EIO:          linuxEIO,
	unix.ENXIO:        linuxENXIO,
	unix.E2BIG:        linuxE2BIG,
	unix.EBADF:        linuxEBADF,
	unix.EAGAIN:       11,
	unix.ENOMEM:       linuxENOMEM,
	unix.EACCES:       13,
	unix.EFAULT:       14,
	unix.ENOTBLK:      15,
	unix.EBUSY:        16,
	unix.EEXIST:       linuxEEXIST,
	unix.EXDEV:        18,
	unix.ENODEV:       19,
	unix.ENOTDIR:      linuxENOTDIR,
	unix.EISDIR:       linuxEISDIR,
	unix.EINVAL:       linuxEINVAL,
	unix.ENFILE:       linuxENFILE,
	unix.EMFILE:       24,
	unix.ENOTTY:       25,
	unix.ETXTBSY:      26,
	unix.EFBIG:        linuxEFBIG,
	unix.ENOSPC:       28,
	unix.ESPIPE:       29,
	unix.EROFS:        linuxEROFS,
	unix.EMLINK:       31,
	unix.EPIPE:        32,
	unix.ERANGE:       34,
	unix.EDEADLK:      35,
	unix.ENAMETOOLONG: linuxENAMETOOLONG,
	unix.ENOLCK:       linuxENOLCK,
	unix.ENOSYS:       38,
	unix.ENOTEMPTY:    39,
	unix.ELOOP:        linuxELOOP,
	unix.EOVERFLOW:    75,
	unix.EILSEQ:       84,
	unix.EOPNOTSUPP:   linuxEOPNOTSUPP,
	unix.ETIMEDOUT:    110,
	unix.ESTALE:       linuxESTALE,
	unix.EDQUOT:       122,
}

// toErrno is how an error of a file operation is told to the client.
func toErrno(err error) errno {
	var e errno
	if errors.As(err, &e) {
		return e
	}
	var host unix.Errno
	if errors.As(err, &host) {
		if e, ok := linuxErrno[host]; ok {
			return e
		}
		if e, ok := hostErrno[host]; ok {
			return e
		}
	}
	return linuxEIO
}
