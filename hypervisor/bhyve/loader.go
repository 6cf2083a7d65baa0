package bhyve

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/vmmapi"
)

const (
	program = "/usr/sbin/bhyve"
	// cpuset is cpuset(1), which starts a program on some of the host's CPUs, and
	// moves one that runs.
	cpuset = "/usr/bin/cpuset"

	// loadCommand is the first argument of this program where it is to become
	// a machine. The others are the virtual machine's name, a mark that finds
	// the process, and the machine's directory.
	loadCommand = "become-bhyve-machine"

	guestFile  = "guest.json"
	configFile = "bhyve.conf"
)

// Become makes a machine of this process if args, which are os.Args, ask for
// it: it loads the guest and becomes bhyve(8). It returns false for any other
// args, and else only with an error. Every program that calls Launch calls it
// before anything else.
func Become(args []string) (handled bool, err error) {
	if len(args) < 2 || args[1] != loadCommand {
		return false, nil
	}
	if len(args) != 5 {
		return true, fmt.Errorf("%s is for this program's own use", loadCommand)
	}
	return true, become(args[4])
}

func become(dir string) error {
	g, err := readGuest(dir)
	if err != nil {
		return err
	}
	if err := g.make(vmmapi.ThisHost()); err != nil {
		return err
	}
	// What is ignored stays ignored across exec. A console whose reader is gone
	// must not be bhyve's end.
	signal.Ignore(syscall.SIGPIPE)
	// Nor may anyone but root connect to the socket on which a bhyve that was
	// built with checkpoints writes files for whoever asks.
	syscall.Umask(0o077)
	path, argv, err := g.command(dir, runtime.NumCPU())
	if err == nil {
		err = &os.PathError{Op: "exec", Path: path, Err: syscall.Exec(path, argv, os.Environ())}
	}
	return errors.Join(err, destroyed(vmmapi.ThisHost().Destroy(g.Name)))
}

// checkpointDir is where a bhyve that was built with checkpoints keeps a socket
// under the virtual machine's name, which it never removes
// (usr.sbin/bhyve/snapshot.h).
const checkpointDir = "/var/run/bhyve"

// removeCheckpointSocket removes what a bhyve that has ended may have left.
func removeCheckpointSocket(vmName string) error {
	if err := os.Remove(filepath.Join(checkpointDir, vmName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// prepare writes into dir what the loader and bhyve(8) read: both from one
// guest, so that they agree on its memory.
func prepare(dir string, g guest) error {
	conf, err := g.file()
	if err != nil {
		return err
	}
	data, err := json.Marshal(g)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, configFile), conf, 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, guestFile), data, 0o600)
}

// unprepare removes what prepare has written.
func unprepare(dir string) error {
	var errs []error
	for _, name := range []string{guestFile, configFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
