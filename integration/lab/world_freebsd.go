package lab

import (
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// world is what the program knows of the world it is in. It is set by Enter.
var world struct{ dir string }

// Enter runs body and ends the program with the code that body returned. The
// world is the host itself: it is one that was made for tests, and a jail has
// no taps and virtual machines of its own.
//
// SIGINT, SIGTERM and SIGHUP end the program with 128 plus the signal's number;
// what runs by then is left to whoever looks after the host.
func Enter(body func() int) {
	code, err := enter(body)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func enter(body func() int) (code int, err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("must be run as root: it makes taps and virtual machines")
	}
	dir, err := newDir()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, dir.remove()) }()
	world.dir = dir.path

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	ended := make(chan int, 1)
	go func() { ended <- body() }()
	select {
	case code := <-ended:
		return code, nil
	case s := <-signals:
		return 128 + int(s.(unix.Signal)), nil
	}
}

// removeCgroups has nothing to do: FreeBSD has none.
func removeCgroups(string) error { return nil }
