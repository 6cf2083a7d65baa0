package bundle

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// tree is a host directory with one of everything that may be bind-mounted.
func tree(t *testing.T) string {
	t.Helper()
	// Not t.TempDir, whose path is too long for a socket's address.
	dir, err := os.MkdirTemp("", "mounts")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"dirlink": "dir", "filelink": "file", "dangling": "nowhere"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return dir
}

func withMounts(mounts ...specs.Mount) *specs.Spec {
	spec := minimal()
	spec.Mounts = mounts
	return spec
}

func bind(source string, options ...string) specs.Mount {
	return specs.Mount{Destination: "/mnt", Type: "bind", Source: source, Options: options}
}

func TestBindMountsBecomeShares(t *testing.T) {
	dir := tree(t)
	for name, tc := range map[string]struct {
		mount  specs.Mount
		share  Share
		source string
	}{
		"directory": {
			bind(filepath.Join(dir, "dir"), "rbind", "rw"),
			Share{Source: filepath.Join(dir, "dir"), Target: "volumes/0"},
			"/run/bundles/c1/volumes/0",
		},
		"read-only directory": {
			bind(filepath.Join(dir, "dir"), "rbind", "ro"),
			Share{Source: filepath.Join(dir, "dir"), Target: "volumes/0", ReadOnly: true},
			"/run/bundles/c1/volumes/0",
		},
		"file": {
			bind(filepath.Join(dir, "file"), "bind"),
			Share{Source: filepath.Join(dir, "file"), Target: "volumes/0", SingleFile: true},
			"/run/bundles/c1/volumes/0/file",
		},
		"link to a directory": {
			bind(filepath.Join(dir, "dirlink"), "bind"),
			Share{Source: filepath.Join(dir, "dirlink"), Target: "volumes/0"},
			"/run/bundles/c1/volumes/0",
		},
		"link to a file": {
			bind(filepath.Join(dir, "filelink"), "bind"),
			Share{Source: filepath.Join(dir, "filelink"), Target: "volumes/0", SingleFile: true},
			"/run/bundles/c1/volumes/0/filelink",
		},
		"by its option alone": {
			specs.Mount{Destination: "/mnt", Type: "none", Source: filepath.Join(dir, "dir"), Options: []string{"rbind"}},
			Share{Source: filepath.Join(dir, "dir"), Target: "volumes/0"},
			"/run/bundles/c1/volumes/0",
		},
		"by its type alone": {
			bind(filepath.Join(dir, "dir")),
			Share{Source: filepath.Join(dir, "dir"), Target: "volumes/0"},
			"/run/bundles/c1/volumes/0",
		},
		"private and slave propagation": {
			bind(filepath.Join(dir, "dir"), "rbind", "rprivate", "rslave"),
			Share{Source: filepath.Join(dir, "dir"), Target: "volumes/0"},
			"/run/bundles/c1/volumes/0",
		},
	} {
		t.Run(name, func(t *testing.T) {
			options := len(tc.mount.Options)
			g := translate(t, withMounts(tc.mount))
			if len(g.Shares) != 2 || g.Shares[1] != tc.share {
				t.Errorf("shares are %+v, want the root and %+v", g.Shares, tc.share)
			}
			if m := g.Spec.Mounts[0]; m.Source != tc.source || m.Destination != "/mnt" || len(m.Options) != options {
				t.Errorf("mount is now %+v, want source %s", m, tc.source)
			}
		})
	}
}

func TestSharesAreNumberedInOrder(t *testing.T) {
	dir := tree(t)
	g := translate(t, withMounts(
		bind(filepath.Join(dir, "dir")),
		specs.Mount{Destination: "/proc", Type: "proc", Source: "proc"},
		bind(filepath.Join(dir, "file")),
		bind(filepath.Join(dir, "dir"), "ro"),
	))
	var targets []string
	for _, s := range g.Shares {
		targets = append(targets, s.Target)
	}
	want := []string{"rootfs", "volumes/0", "volumes/1", "volumes/2"}
	if len(targets) != len(want) {
		t.Fatalf("targets are %q", targets)
	}
	for i := range want {
		if targets[i] != want[i] {
			t.Errorf("targets are %q, want %q", targets, want)
		}
	}
	if m := g.Spec.Mounts[1]; m.Source != "proc" || m.Type != "proc" {
		t.Errorf("a mount of the guest's own was changed to %+v", m)
	}
	if s := g.Spec.Mounts[3].Source; s != "/run/bundles/c1/volumes/2" {
		t.Errorf("the last mount's source is %s", s)
	}
}

func TestMountsThatAGuestCannotHave(t *testing.T) {
	dir := tree(t)
	for name, tc := range map[string]struct {
		mount specs.Mount
		kind  func(error) bool
		named string
	}{
		"missing":            {bind(filepath.Join(dir, "none")), errdefs.IsNotFound, filepath.Join(dir, "none")},
		"dangling link":      {bind(filepath.Join(dir, "dangling")), errdefs.IsNotFound, "dangling"},
		"below a file":       {bind(filepath.Join(dir, "file", "x")), func(err error) bool { return err != nil }, "file"},
		"relative":           {bind("dir"), errdefs.IsInvalidArgument, "absolute"},
		"empty":              {bind(""), errdefs.IsInvalidArgument, "absolute"},
		"socket":             {bind(filepath.Join(dir, "socket")), errdefs.IsInvalidArgument, "socket"},
		"FIFO":               {bind(filepath.Join(dir, "fifo")), errdefs.IsInvalidArgument, "fifo"},
		"device":             {bind("/dev/null"), errdefs.IsInvalidArgument, "/dev/null"},
		"shared propagation": {bind(filepath.Join(dir, "dir"), "rbind", "shared"), errdefs.IsInvalidArgument, "shared"},
		"rshared":            {bind(filepath.Join(dir, "dir"), "rbind", "rshared"), errdefs.IsInvalidArgument, "rshared"},
		"host file system":   {specs.Mount{Destination: "/mnt", Type: "ext4", Source: "/dev/sda1"}, errdefs.IsInvalidArgument, "ext4"},
		"no type":            {specs.Mount{Destination: "/mnt", Source: "x"}, errdefs.IsInvalidArgument, "type"},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, withMounts(tc.mount), tc.kind, tc.named, "/mnt")
		})
	}
}

func TestTheGuestsOwnFileSystems(t *testing.T) {
	for _, typ := range []string{"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"} {
		m := specs.Mount{Destination: "/mnt", Type: typ, Source: typ, Options: []string{"nosuid", "ro"}}
		g := translate(t, withMounts(m))
		if len(g.Shares) != 1 || g.Spec.Mounts[0].Source != typ || len(g.Spec.Mounts[0].Options) != 2 {
			t.Errorf("%s: shares %+v, mount %+v", typ, g.Shares, g.Spec.Mounts[0])
		}
	}
}
