package pool

import "github.com/containerd/ttrpc"

// rootOnly refuses connections of other users than this process's own, which is
// root, by SO_PEERCRED (unix(7)): a socket's file can be handed around.
func rootOnly() ttrpc.Handshaker { return ttrpc.UnixSocketRequireSameUser() }
