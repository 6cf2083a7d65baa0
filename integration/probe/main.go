//go:build linux

// Command probe runs inside of containers and looks at the world from there. It is
// static, and part of the busybox image of package image.
//
// Each check prints one line and the exit code says whether all passed, so that
// the same command can be judged under any runtime.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

// Every command is given at least one argument, which may be empty.
var commands = map[string]struct {
	usage string
	run   func(args []string) error
}{
	"gen":     {"gen BYTES: write the pattern to standard output", gen},
	"sum":     {"sum: length and SHA-256 of standard input", sum},
	"boot":    {"boot: which kernel this is, and how long it has run, as JSON", boot},
	"clock":   {"clock: the wall clock, in nanoseconds since 1970", func([]string) error { _, err := fmt.Println(time.Now().UnixNano()); return err }},
	"euid":    {"euid [PREFIX]: print the effective user id", func(a []string) error { _, err := fmt.Println(a[0] + strconv.Itoa(os.Geteuid())); return err }},
	"fs":      {"fs DIR: check file system semantics in an empty, writable DIR", func(a []string) error { return checkFS(a[0]) }},
	"entries": {"entries DIR COUNT: check that DIR has the pattern's entries", entries},
	"odd":     {"odd: check the unusual files of the image", func([]string) error { return checkOdd() }},
	"winsize": {"winsize: print the terminal's size, and again when it changes, until a line is read", winsize},
	"signals": {"signals: print each signal that arrives; SIGTERM ends with code 42", signals},
	"lot":     {"lot: print what no two machines may share, as JSON, and do nothing more until SIGTERM", lot},
	"pause":   {"pause: do nothing until SIGTERM or SIGINT", pause},
	"web":     {"web PORT [PIDFILE [ANY…]]: answer HTTP requests with 200", web},
	"fetch":   {"fetch URL: print what an HTTP GET answers, in bounded time", fetch},
	"frames":  {"frames INTERFACE: send Ethernet frames, in hexadecimal on standard input", frames},
	"answer":  {"answer PORT: be what measure talks to", answerAll},
	"measure": {"measure ADDRESS ROUNDS MIB: round trips and throughput to an answer, as JSON", measure},
	"ledger":  {"ledger FILE [removed]: count up to FILE and standard output, for ever", ledger},
	"link":    {"link PORT: try to reach the host from process 1's network namespace", func(a []string) error { return checkLink(a[0]) }},
}

func main() {
	if applet, ok := applets[filepath.Base(os.Args[0])]; ok {
		if err := applet(append(os.Args[1:], "")); err != nil {
			if !errors.Is(err, errNoProcess) {
				fmt.Fprintln(os.Stderr, err)
			}
			os.Exit(1)
		}
		return
	}
	if len(os.Args) < 2 {
		usage()
	}
	c, ok := commands[os.Args[1]]
	if !ok {
		usage()
	}
	if err := c.run(append(os.Args[2:], "")); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func usage() {
	for _, c := range commands {
		fmt.Fprintln(os.Stderr, "probe", c.usage)
	}
	os.Exit(2)
}

func gen(args []string) error {
	n, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		return err
	}
	// One write system call per read of the pattern: large ones, as a program
	// that fills its pipe would make.
	_, err = io.CopyBuffer(struct{ io.Writer }{os.Stdout}, pattern.Reader(n), make([]byte, 256<<10))
	return err
}

func sum([]string) error {
	line, err := pattern.Sum(os.Stdin)
	if err != nil {
		return err
	}
	fmt.Println(line)
	return nil
}

func entries(args []string) error {
	if len(args) < 2 {
		return errors.New("want a directory and a number")
	}
	count, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	return checkEntries(args[0], count)
}

// check is one thing that must hold.
type check struct {
	name string
	run  func() error
}

var errChecks = errors.New("some checks failed")

// runAll runs every check, also after a failure: what breaks together says more.
func runAll(checks []check) error {
	var failed bool
	for _, c := range checks {
		if err := c.run(); err != nil {
			failed = true
			fmt.Printf("FAIL %s: %v\n", c.name, err)
			continue
		}
		fmt.Printf("ok %s\n", c.name)
	}
	if failed {
		return errChecks
	}
	return nil
}
