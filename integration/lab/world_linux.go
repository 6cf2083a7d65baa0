package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// The stages that the program goes through, each in a process of its own:
// outside makes the namespaces and cleans up after them, init is process 1 of
// the PID namespace, and the worker runs the caller's code.
const (
	stageEnv    = "BHYVE_LAB_STAGE"
	dirEnv      = "BHYVE_LAB_DIR"
	stageInit   = "init"
	stageWorker = "worker"
)

// world is what the worker knows of the world it is in. It is set by Enter.
var world struct{ dir string }

// Enter runs body inside a new world and ends the program with the code that
// body returned. It starts the program again with the same arguments, so it
// belongs at the top of main or TestMain.
//
// SIGINT, SIGTERM and SIGHUP end the world at once: everything in it is killed,
// what it kept on disk is removed, and the exit code is 128 plus the signal's
// number.
func Enter(body func() int) {
	stage := os.Getenv(stageEnv)
	world.dir = os.Getenv(dirEnv)
	// A lab inside a lab starts from the beginning.
	os.Unsetenv(stageEnv)
	os.Unsetenv(dirEnv)

	var code int
	var err error
	switch stage {
	case stageInit:
		code, err = initStage()
	case stageWorker:
		code = body()
	default:
		code, err = outside()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// outside makes the world, waits for its end and removes what is left of it.
func outside() (code int, err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("must be run as root: it makes namespaces, taps and containers")
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)

	dir, err := newDir()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, dir.remove()) }()

	// The kernel sends a child's death signal when the thread that made it is
	// gone, so this one must not go before the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := again(stageInit, dir.path)
	cmd.ExtraFiles = []*os.File{dir.lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("make namespaces: %w", err)
	}

	ended := make(chan struct{})
	caught := make(chan syscall.Signal, 1)
	go func() {
		select {
		case s := <-signals:
			// Process 1 takes the whole PID namespace with it.
			cmd.Process.Kill()
			caught <- s.(syscall.Signal)
		case <-ended:
		}
	}()
	err = cmd.Wait()
	close(ended)

	// On Ctrl-C the terminal signals the inside too, which may be the quicker.
	select {
	case s := <-caught:
		return 128 + int(s), nil
	case s := <-signals:
		return 128 + int(s.(syscall.Signal)), nil
	default:
	}
	return exitCode(err)
}

// initStage is process 1: it furnishes the world, starts the worker and reaps
// what is orphaned to it. Its end is the end of everything inside.
func initStage() (int, error) {
	// Process 1 must outlive a Ctrl-C long enough to be killed from outside.
	// Catching, unlike ignoring, is not inherited by the worker.
	signal.Notify(make(chan os.Signal, 1), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)

	if err := furnish(); err != nil {
		return 0, fmt.Errorf("set up namespaces: %w", err)
	}
	runtime.LockOSThread()
	if err := enterCgroups(filepath.Base(world.dir)); err != nil {
		return 0, fmt.Errorf("set up cgroups: %w", err)
	}
	cmd := again(stageWorker, world.dir)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case pid != cmd.Process.Pid:
		case status.Signaled():
			return 128 + int(status.Signal()), nil
		default:
			return status.ExitStatus(), nil
		}
	}
}

// again is this program with the same arguments and streams, at another stage.
func again(stage, dir string) *exec.Cmd {
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageEnv+"="+stage, dirEnv+"="+dir)
	return cmd
}

// exitCode is the exit code that a shell would give for what Wait returned.
func exitCode(err error) (int, error) {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case !errors.As(err, &exit):
		return 0, err
	}
	if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return exit.ExitCode(), nil
}
