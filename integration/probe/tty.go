//go:build linux

package main

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func winsize([]string) error {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	line := make(chan error, 1)
	go func() {
		_, err := bufio.NewReader(os.Stdin).ReadString('\n')
		line <- err
	}()
	var last string
	for {
		size, err := unix.IoctlGetWinsize(int(os.Stdin.Fd()), unix.TIOCGWINSZ)
		if err != nil {
			return fmt.Errorf("size of the terminal: %w", err)
		}
		if s := fmt.Sprintf("size %dx%d", size.Col, size.Row); s != last {
			fmt.Println(s)
			last = s
		}
		select {
		case <-changed:
		case err := <-line:
			return err
		}
	}
}

// exitOnTerm is a code that no shell or runtime gives by itself.
const exitOnTerm = 42

func signals([]string) error {
	arrived := make(chan os.Signal, 16)
	signal.Notify(arrived, unix.SIGHUP, unix.SIGINT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGTERM)
	fmt.Println("ready")
	for s := range arrived {
		fmt.Println(s)
		if s == unix.SIGTERM {
			os.Exit(exitOnTerm)
		}
	}
	return nil
}
