//go:build linux

package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

// frames sends Ethernet frames, each a line of standard input in hexadecimal, as
// they are.
func frames(args []string) error {
	iface, err := net.InterfaceByName(args[0])
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	defer unix.Close(fd)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		frame, err := hex.DecodeString(lines.Text())
		if err == nil {
			err = unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: iface.Index})
		}
		if err != nil {
			return fmt.Errorf("frame %q: %w", lines.Text(), err)
		}
	}
	return lines.Err()
}

// answerAll serves connections of measure.
func answerAll(args []string) error {
	l, err := net.Listen("tcp4", ":"+args[0])
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			pattern.Answer(conn)
		}()
	}
}

// measure prints a pattern.Measured of a peer that answers.
func measure(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("want ADDRESS ROUNDS MIB")
	}
	rounds, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	mib, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	m, err := pattern.Measure(func() (net.Conn, error) { return net.DialTimeout("tcp4", args[0], 30*time.Second) }, rounds, mib)
	if err != nil {
		return err
	}
	return json.NewEncoder(io.Writer(os.Stdout)).Encode(m)
}
