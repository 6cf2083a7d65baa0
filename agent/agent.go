//go:build linux

package agent

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
)

// modulesList names the kernel modules to load; see parseModules.
const modulesList = "/etc/modules.list"

// hostname is the guest's until a container's spec says otherwise.
const hostname = "sandbox"

// Run does the work of process 1 and returns when the machine is to end: nil
// after an orderly power-off was asked for and has been prepared, or the reason
// why the machine cannot be of use. Halt is all that is left to do then.
//
// What the host waits for, the listeners, comes as early as it can; what only
// a container needs is made while the host is still dialling.
func Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The console is slow, and read by people: what matters, without colours.
	log.L.Logger.SetLevel(log.WarnLevel)
	log.L.Logger.SetFormatter(&logrus.TextFormatter{DisableColors: true, DisableTimestamp: true})

	if err := leaveInitramfs(); err != nil {
		return err
	}
	if err := mountAll(earlyMounts); err != nil {
		return err
	}
	if err := raiseLimits(); err != nil {
		return err
	}
	go reapChildren(ctx)
	if err := loadModules(modulesList); err != nil {
		return err
	}
	link, err := openLink(ctx, haveVsock())
	if err != nil {
		return err
	}
	defer link.Close()

	if err := loopbackUp(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := mountAll(lateMounts); err != nil {
		return err
	}
	if err := settleRuntime(imageRuntime, runtimeDir); err != nil {
		return err
	}
	if err := linkDevices("/dev"); err != nil {
		return err
	}
	if err := delegateControllers(cgroupRoot); err != nil {
		return err
	}
	if err := makeNetNS(agentproto.SandboxNetNS); err != nil {
		return err
	}

	srv, err := newServer(ctx)
	if err != nil {
		return err
	}
	return srv.run(ctx, link)
}

// Halt ends the machine: it powers it off when err is nil; otherwise it prints
// err on the console and resets the machine, which the host's monitor takes
// for its end. It returns only where the kernel refuses.
func Halt(err error) error {
	how := unix.LINUX_REBOOT_CMD_POWER_OFF
	if err != nil {
		fmt.Fprintf(os.Stderr, "bhyve-agent: %v\n", err)
		how = unix.LINUX_REBOOT_CMD_RESTART
	}
	return unix.Reboot(how)
}
