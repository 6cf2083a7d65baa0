//go:build linux

package main

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ledgerPause is between two lines of a ledger.
const ledgerPause = 100 * time.Millisecond

// ledger writes lines to a file that it opens once and to standard output: what
// was drawn at its start, a number that counts up in memory, and what was drawn
// for the line. It repeats lines of its input on standard output. So it shows
// whether a process goes on, and with the same files, when its machine does.
func ledger(args []string) error {
	f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	if len(args) > 1 && args[1] == "removed" {
		if err := os.Remove(args[0]); err != nil {
			return err
		}
	}
	// Where its input is a terminal, what is typed is not to be in a line.
	if t, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		t.Lflag &^= unix.ECHO
		if err := unix.IoctlSetTermios(0, unix.TCSETS, t); err != nil {
			return err
		}
	}
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			fmt.Println("in", in.Text())
		}
	}()
	run := draw()
	for n := 1; ; n++ {
		line := fmt.Sprintf("%s %d %s\n", run, n, draw())
		if _, err := f.WriteString(line); err != nil {
			return err
		}
		if _, err := os.Stdout.WriteString(line); err != nil {
			return err
		}
		time.Sleep(ledgerPause)
	}
}

// draw returns what nobody else draws.
func draw() string {
	b := make([]byte, 8)
	rand.Read(b)
	return fmt.Sprintf("%x", b)
}
