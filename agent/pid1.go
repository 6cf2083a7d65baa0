//go:build linux

package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// mountPoint is a kernel file system and where it belongs.
type mountPoint struct {
	fstype, target string
	flags          uintptr
	data           string
}

// earlyMounts are what loading modules and configuring the link need.
var earlyMounts = []mountPoint{
	{"proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
}

// lateMounts are what containers need. The group of terminals is 5, "tty", as
// in every distribution.
var lateMounts = []mountPoint{
	{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	{"tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
	{"mqueue", "/dev/mqueue", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"cgroup2", cgroupRoot, unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "nsdelegate"},
}

func mountAll(mounts []mountPoint) error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("mount %s: %w", m.fstype, err)
		}
		if err := unix.Mount(m.fstype, m.target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
		}
	}
	return nil
}

// devLinks are the links that programs expect in /dev and devtmpfs does not
// make: the OCI runtime is given resources on /dev/stdin.
var devLinks = map[string]string{
	"fd":     "/proc/self/fd",
	"stdin":  "/proc/self/fd/0",
	"stdout": "/proc/self/fd/1",
	"stderr": "/proc/self/fd/2",
}

// linkDevices makes devLinks in dev.
func linkDevices(dev string) error {
	for name, target := range devLinks {
		if err := os.Symlink(target, filepath.Join(dev, name)); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("link devices: %w", err)
		}
	}
	return nil
}

// leaveInitramfs makes the root an ordinary mount. The initramfs itself has no
// parent mount, and pivot_root(2), by which OCI runtimes enter a container's
// root, refuses a caller whose root has none. So the same tree is bound, moved
// over the root and entered.
func leaveInitramfs() error {
	const stage = "/.root"
	if err := os.MkdirAll(stage, 0o700); err != nil {
		return fmt.Errorf("leave initramfs: %w", err)
	}
	if err := unix.Mount("/", stage, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("leave initramfs: bind root: %w", err)
	}
	if err := os.Chdir(stage); err != nil {
		return fmt.Errorf("leave initramfs: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("leave initramfs: move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("leave initramfs: chroot: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("leave initramfs: %w", err)
	}
	return os.Remove(stage)
}

// maxOpenFiles is the kernel's own bound (fs/file.c, sysctl_nr_open), and what
// service managers give to container engines.
const maxOpenFiles = 1 << 20

// raiseLimits lifts the bound on open files from the 4096 of process 1: the
// agent has several for each stream, and a container whose configuration says
// nothing inherits what its engine has.
func raiseLimits() error {
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: maxOpenFiles, Max: maxOpenFiles}); err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	return nil
}

// module is one line of the modules list.
type module struct{ path, params string }

// parseModules reads the list of kernel modules: one a line, in load order, as
// a path and, after white space, the module's parameters. Empty lines and
// lines that start with '#' do not count.
func parseModules(r io.Reader) ([]module, error) {
	var modules []module
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		m := module{path: line}
		if i := strings.IndexAny(line, " \t"); i >= 0 {
			m = module{path: line[:i], params: strings.TrimSpace(line[i:])}
		}
		if !filepath.IsAbs(m.path) {
			return nil, fmt.Errorf("modules list, line %d: %q is not an absolute path", n, m.path)
		}
		modules = append(modules, m)
	}
	return modules, lines.Err()
}

// loadModules loads what list names. A guest without the list has everything
// built in.
func loadModules(list string) error {
	f, err := os.Open(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	defer f.Close()
	modules, err := parseModules(f)
	if err != nil {
		return err
	}
	for _, m := range modules {
		if err := loadModule(m); err != nil {
			return fmt.Errorf("load module %s: %w", m.path, err)
		}
	}
	return nil
}

func loadModule(m module) error {
	f, err := os.Open(m.path)
	if err != nil {
		return err
	}
	defer f.Close()
	// EEXIST: it is loaded already, or built in.
	if err := unix.FinitModule(int(f.Fd()), m.params, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// delegateControllers lets the control groups below root, a cgroup2 mount, use
// every controller that the kernel has.
func delegateControllers(root string) error {
	available, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("delegate controllers: %w", err)
	}
	controllers := strings.Fields(string(available))
	enable := func(names ...string) error {
		return os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+strings.Join(names, " +")), 0)
	}
	if len(controllers) == 0 || enable(controllers...) == nil {
		return nil
	}
	// Together is faster, but all or nothing: one that the kernel will not
	// delegate must not cost the others.
	for _, c := range controllers {
		if err := enable(c); err != nil {
			log.L.WithError(err).Warnf("containers have no %s controller", c)
		}
	}
	return nil
}

// reapChildren reaps every child of process 1, adopted ones too, and tells the
// task service through containerd's reaper. No one else may wait for a child.
func reapChildren(ctx context.Context) {
	// One pending signal is enough: a reap takes all that there are.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	defer signal.Stop(signals)
	for {
		select {
		case <-signals:
			if err := reaper.Reap(); err != nil {
				log.G(ctx).WithError(err).Error("reap children")
			}
		case <-ctx.Done():
			return
		}
	}
}
