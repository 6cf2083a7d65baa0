package pool

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
)

// solLocal is SOL_LOCAL of sys/un.h, which golang.org/x/sys does not have.
const solLocal = 0

type handshaker struct{}

// rootOnly refuses connections of other users than this process's own, which is
// root, by LOCAL_PEERCRED (unix(4)): a socket's file can be handed around.
func rootOnly() ttrpc.Handshaker { return handshaker{} }

func (handshaker) Handshake(_ context.Context, conn net.Conn) (net.Conn, any, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, errors.New("a unix socket is required")
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var cred *unix.Xucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptXucred(int(fd), solLocal, unix.LOCAL_PEERCRED) })
	if err := errors.Join(err, credErr); err != nil {
		return nil, nil, fmt.Errorf("credentials of the peer: %w", err)
	}
	if int(cred.Uid) != os.Geteuid() {
		return nil, nil, fmt.Errorf("user %d may not use the pool: %w", cred.Uid, os.ErrPermission)
	}
	return conn, cred, nil
}
