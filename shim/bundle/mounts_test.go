package bundle

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/pkg/identifiers"
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

func TestBindMountsBecomeVolumes(t *testing.T) {
	dir := tree(t)
	for name, tc := range map[string]struct {
		mount  specs.Mount
		volume Volume
		below  string // the volume's directory
	}{
		"directory":           {bind(filepath.Join(dir, "dir"), "rbind", "rw"), Volume{Source: filepath.Join(dir, "dir")}, ""},
		"not clean":           {bind(dir+"//./dir/", "rbind", "rw"), Volume{Source: filepath.Join(dir, "dir")}, ""},
		"read-only directory": {bind(filepath.Join(dir, "dir"), "rbind", "ro"), Volume{Source: filepath.Join(dir, "dir"), ReadOnly: true}, ""},
		"read-only below":     {bind(filepath.Join(dir, "dir"), "rbind", "rro"), Volume{Source: filepath.Join(dir, "dir"), ReadOnly: true}, ""},
		"the last one counts": {bind(filepath.Join(dir, "dir"), "ro", "rw"), Volume{Source: filepath.Join(dir, "dir")}, ""},
		"file":                {bind(filepath.Join(dir, "file"), "bind"), Volume{Source: filepath.Join(dir, "file"), SingleFile: true}, "file"},
		"link to a directory": {bind(filepath.Join(dir, "dirlink"), "bind"), Volume{Source: filepath.Join(dir, "dirlink")}, ""},
		"link to a file":      {bind(filepath.Join(dir, "filelink"), "bind"), Volume{Source: filepath.Join(dir, "filelink"), SingleFile: true}, "filelink"},
		"by its option alone": {
			specs.Mount{Destination: "/mnt", Type: "none", Source: filepath.Join(dir, "dir"), Options: []string{"rbind"}},
			Volume{Source: filepath.Join(dir, "dir")}, "",
		},
		"by its type alone":             {bind(filepath.Join(dir, "dir")), Volume{Source: filepath.Join(dir, "dir")}, ""},
		"private and slave propagation": {bind(filepath.Join(dir, "dir"), "rbind", "rprivate", "rslave"), Volume{Source: filepath.Join(dir, "dir"), Slave: true}, ""},
		"private propagation":           {bind(filepath.Join(dir, "dir"), "rbind", "rprivate"), Volume{Source: filepath.Join(dir, "dir")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			options := len(tc.mount.Options)
			g := translate(t, withMounts(tc.mount))
			if len(g.Shares) != 1 || len(g.Volumes) != 1 {
				t.Fatalf("shares are %+v, volumes %+v", g.Shares, g.Volumes)
			}
			got := g.Volumes[0]
			tc.volume.Name = got.Name
			if got != tc.volume {
				t.Errorf("volume is %+v, want %+v", got, tc.volume)
			}
			want := filepath.Join("/run/volumes", got.Name, tc.below)
			if m := g.Spec.Mounts[0]; m.Source != want || m.Destination != "/mnt" || len(m.Options) != options {
				t.Errorf("mount is now %+v, want source %s", m, want)
			}
		})
	}
}

// One tree is one volume, for whichever containers.
func TestVolumesAreNamedByWhatTheyAre(t *testing.T) {
	dir := tree(t)
	spec := func() *specs.Spec {
		return withMounts(
			bind(filepath.Join(dir, "dir")),
			specs.Mount{Destination: "/proc", Type: "proc", Source: "proc"},
			bind(filepath.Join(dir, "file")),
			bind(filepath.Join(dir, "dir"), "ro"),
			bind(filepath.Join(dir, "dir"), "rw"),
		)
	}
	g := translate(t, spec())
	if len(g.Volumes) != 3 {
		t.Fatalf("volumes are %+v, want the directory in two modes and the file", g.Volumes)
	}
	names := map[string]bool{}
	for _, v := range g.Volumes {
		names[v.Name] = true
		if err := identifiers.Validate(v.Name); err != nil {
			t.Error(err)
		}
	}
	if len(names) != 3 {
		t.Errorf("names are %v", names)
	}
	if m := g.Spec.Mounts; m[0].Source != m[4].Source || m[0].Source == m[3].Source {
		t.Errorf("mounts are %+v", m)
	}
	if m := g.Spec.Mounts[1]; m.Source != "proc" || m.Type != "proc" {
		t.Errorf("a mount of the guest's own was changed to %+v", m)
	}
	again, err := Translate("c2", Pod{}, spec(), "/host/rootfs2")
	if err != nil || !slices.Equal(again.Volumes, g.Volumes) {
		t.Errorf("another container has %+v, %v", again.Volumes, err)
	}
	// What has been replaced is another volume.
	if err := os.Rename(filepath.Join(dir, "dir"), filepath.Join(dir, "old")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	if again := translate(t, spec()); names[again.Volumes[0].Name] {
		t.Error("a directory that has been replaced has the name of the old one")
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
		"shared propagation": {bind(filepath.Join(dir, "dir"), "rbind", "shared"), errdefs.IsNotImplemented, "shared"},
		"rshared":            {bind(filepath.Join(dir, "dir"), "rbind", "rshared"), errdefs.IsNotImplemented, "rshared"},
		"mapped owners":      {specs.Mount{Destination: "/mnt", Type: "bind", Source: filepath.Join(dir, "dir"), UIDMappings: []specs.LinuxIDMapping{{Size: 1}}}, errdefs.IsNotImplemented, "owners"},
		"idmap":              {bind(filepath.Join(dir, "dir"), "idmap"), errdefs.IsNotImplemented, "idmap"},
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
