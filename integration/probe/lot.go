//go:build linux

package main

import (
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

// lot prints a pattern.Lot, and does nothing more until SIGTERM. It draws before
// it does anything else.
func lot([]string) error {
	const drawn = 32
	random := make([]byte, drawn)
	if _, err := unix.Getrandom(random, 0); err != nil {
		return os.NewSyscallError("getrandom", err)
	}
	device, err := os.Open("/dev/urandom")
	if err != nil {
		return err
	}
	defer device.Close()
	more := make([]byte, drawn)
	if _, err := io.ReadFull(device, more); err != nil {
		return err
	}
	l := pattern.Lot{Random: hex.EncodeToString(random), Urandom: hex.EncodeToString(more)}
	for path, to := range map[string]*string{
		"/proc/sys/kernel/random/uuid":    &l.UUID,
		"/proc/sys/kernel/random/boot_id": &l.BootID,
		"/proc/1/root/etc/machine-id":     &l.MachineID,
	} {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		*to = strings.TrimSpace(string(text))
	}
	if l.Hostname, err = os.Hostname(); err != nil {
		return err
	}
	all, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 {
			l.MACs = append(l.MACs, i.HardwareAddr.String())
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(l); err != nil {
		return err
	}
	return pause(nil)
}
