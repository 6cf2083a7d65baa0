package pool

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// hostIdentity is what of a host a machine's saved state depends on, beside what
// its backend knows: the monitor's build is for the backend to compare.
type hostIdentity struct {
	Arch string `json:"arch"`
	// CPU is the processor by the name that the system has for it, and a digest of
	// what it can do: a guest goes on using the instructions that it has found.
	CPU string `json:"cpu"`
}

func (h hostIdentity) String() string { return h.Arch + ", " + h.CPU }

var thisHost = sync.OnceValue(func() hostIdentity {
	return hostIdentity{Arch: runtime.GOARCH, CPU: cpuIdentity()}
})

// stamp changes when a file is changed or replaced.
type stamp struct {
	size  int64
	inode uint64
	// changed is the status change time, which unlike the others cannot be set.
	changed unix.Timespec
}

func stampOf(path string) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return stamp{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return stamp{}, fmt.Errorf("%s is not a regular file: %w", path, syscall.EINVAL)
	}
	return stamp{size: st.Size, inode: st.Ino, changed: st.Ctim}, nil
}
