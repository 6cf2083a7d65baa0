//go:build linux

package main

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

func boot([]string) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(uptime), " ")
	seconds, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(pattern.Boot{
		Kernel: strings.Join([]string{
			unix.ByteSliceToString(uts.Sysname[:]), unix.ByteSliceToString(uts.Release[:]),
			unix.ByteSliceToString(uts.Version[:]), unix.ByteSliceToString(uts.Machine[:]),
		}, " "),
		BootID:        strings.TrimSpace(string(id)),
		UptimeSeconds: seconds,
	})
}
