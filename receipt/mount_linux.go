package receipt

import "golang.org/x/sys/unix"

const undoUnmountFlags = unix.MNT_DETACH
