package bhyve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/internal/checkpoint"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/vmmapi"
	"golang.org/x/sys/unix"
)

// supported asks kernel and userland once: neither changes while it runs, and the
// kernel is asked by making a virtual machine.
var supported = sync.OnceValues(func() (bool, error) {
	kernel, err := vmmapi.ThisHost().SupportsCheckpoint()
	if err != nil || !kernel {
		return false, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), usageTimeout)
	defer cancel()
	// It exits with 0 or not, and lists only what it was built with.
	usage, err := exec.CommandContext(ctx, program, "-h").CombinedOutput()
	if len(usage) == 0 {
		return false, err
	}
	return bytes.Contains(usage, []byte("-r:")), nil
})

// usageTimeout bounds the system's tools that only ask or set something.
const usageTimeout = 10 * time.Second

// SupportsCheckpoint says whether the kernel and bhyve(8) were built for it.
func (h thisHost) SupportsCheckpoint() (bool, error) { return supported() }

// bhyvectl speaks bhyve(8)'s own protocol on the checkpoint socket.
const bhyvectl = "/usr/sbin/bhyvectl"

// suspendTimeout bounds the saving of one machine: all of its memory is written.
const suspendTimeout = 2 * time.Minute

// suspend has the virtual machine's bhyve(8) save it to file, and the files
// beside it, and exit. It returns when bhyve is done with it, whether or not it
// could.
func (h thisHost) suspend(ctx context.Context, name, file string) error {
	socket := filepath.Join(checkpointDir, name)
	ctx, cancel := context.WithTimeout(ctx, suspendTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, bhyvectl, "--vm="+name, "--suspend="+file)
	cmd.Env = []string{"LC_ALL=C"}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, bytes.TrimSpace(out))
	}
	return awaitTurn(ctx, socket)
}

// unpin lets a process that was started on some CPUs run on all of them.
func (thisHost) unpin(ctx context.Context, pid int) error {
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	all := fmt.Sprintf("0-%d", runtime.NumCPU()-1)
	cmd := exec.CommandContext(ctx, cpuset, "-l", all, "-p", strconv.Itoa(pid))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, bytes.TrimSpace(out))
	}
	return nil
}

// awaitTurn returns when bhyve(8) is through with all requests on its checkpoint
// socket that were there before. It answers none of them, but takes one after
// the other and hangs up (usr.sbin/bhyve/snapshot.c, checkpoint_thread): this is
// one that asks for nothing.
func awaitTurn(ctx context.Context, socket string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		// It has exited already.
		return nil
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := conn.(*net.UnixConn).CloseWrite(); err == nil {
		// Its end, or an error that says the same.
		_, _ = io.Copy(io.Discard, conn)
	}
	return context.Cause(ctx)
}

// build is what a checkpoint is good for: this build of the kernel, whose
// structures are in it as they are, of this bhyve(8), and this processor.
func (h thisHost) build() (monitor, processor string, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", "", os.NewSyscallError("uname", err)
	}
	digest, err := checkpoint.Digest(program)
	if err != nil {
		return "", "", err
	}
	monitor = fmt.Sprintf("%s, bhyve %s", unix.ByteSliceToString(u.Version[:]), digest)
	processor, err = processorModel()
	return monitor, processor, err
}
