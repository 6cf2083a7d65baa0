package rootfs

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

func TestMounts(t *testing.T) {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		t.Skip("needs Linux and root to mount an overlay")
	}
	dir := t.TempDir()
	// Something that an overlay can be written to, whatever this is on.
	scratch := filepath.Join(dir, "scratch")
	lower := filepath.Join(dir, "lower")
	target := filepath.Join(dir, "rootfs")
	for _, d := range []string{scratch, lower, target} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(lower, "below"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	book, err := receipt.Open(filepath.Join(dir, "receipts.json"))
	if err != nil {
		t.Fatal(err)
	}
	undo, err := Mount(book, []*types.Mount{
		{Type: "tmpfs", Source: "tmpfs"},
		{Type: "bind", Source: lower, Options: []string{"rbind", "ro"}},
		{Type: "format/mkdir/overlay", Source: "overlay", Options: []string{
			"X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
			"X-containerd.mkdir.path={{ mount 0 }}/work:0755",
			"upperdir={{ mount 0 }}/upper", "workdir={{ mount 0 }}/work", "lowerdir={{ mount 1 }}",
		}},
	}, target, filepath.Join(dir, "parts"))
	defer undo(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if n := book.Len(); n != 3 {
		t.Errorf("%d receipts", n)
	}
	if _, err := os.Stat(filepath.Join(target, "below")); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(target, "above"), nil, 0o644); err != nil {
		t.Error(err)
	}
	if err := undo(context.Background()); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(target)
	if err != nil || len(left) > 0 || book.Len() > 0 {
		t.Errorf("left: %v, %v, %d receipts", left, err, book.Len())
	}
	for _, part := range []string{"0", "1"} {
		if left, err := os.ReadDir(filepath.Join(dir, "parts", part)); err != nil || len(left) > 0 {
			t.Errorf("part %s: %v, %v", part, left, err)
		}
	}
}

func TestReferences(t *testing.T) {
	active := []mount.ActiveMount{
		{Mount: mount.Mount{Source: "s0", Target: "t0"}, MountPoint: "/p/0"},
		{Mount: mount.Mount{Source: "s1"}, MountPoint: "/p/1"},
		{MountPoint: "/p/2"},
	}
	for in, want := range map[string]string{
		"upperdir={{ mount 0 }}/upper":     "upperdir=/p/0/upper",
		"{{mount 1}}:{{ mount 2 }}":        "/p/1:/p/2",
		"lowerdir={{ overlay 2 0 }}":       "lowerdir=/p/2:/p/1:/p/0",
		"lowerdir={{ overlay 1 2 }}":       "lowerdir=/p/1:/p/2",
		"{{ source 1 }},{{ target 0 }}":    "s1,t0",
		"nothing of the kind {} {{ }} {{x": "nothing of the kind {} {{ }} {{x",
	} {
		m, err := realize(&types.Mount{Type: "format/bind", Source: in, Options: []string{in}}, active)
		if err != nil || m.Source != want || !slices.Equal(m.Options, []string{want}) || m.Type != "bind" {
			t.Errorf("%q: %+v, %v", in, m, err)
		}
	}
	plain := &types.Mount{Type: "bind", Source: "{{ mount 0 }}", Options: []string{"ro"}}
	if m, err := realize(plain, active); err != nil || m.Source != plain.Source || !reflect.DeepEqual(m.Options, plain.Options) {
		t.Errorf("a mount without steps became %+v, %v", m, err)
	}
}

func TestMountsThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	active := []mount.ActiveMount{{MountPoint: dir}}
	for name, tc := range map[string]struct {
		m    *types.Mount
		kind func(error) bool
	}{
		"a mount that is not there":     {&types.Mount{Type: "format/bind", Source: "{{ mount 1 }}"}, errdefs.IsInvalidArgument},
		"an unknown reference":          {&types.Mount{Type: "format/bind", Source: "{{ env 0 }}"}, errdefs.IsInvalidArgument},
		"a directory elsewhere":         {&types.Mount{Type: "mkdir/bind", Options: []string{mkdirOption + "/etc/x"}}, errdefs.IsInvalidArgument},
		"a directory above":             {&types.Mount{Type: "mkdir/bind", Options: []string{mkdirOption + dir + "/../x"}}, errdefs.IsInvalidArgument},
		"a directory through a link":    {&types.Mount{Type: "mkdir/bind", Options: []string{mkdirOption + dir + "/out/tmp/x"}}, func(err error) bool { return err != nil }},
		"a mode that is none":           {&types.Mount{Type: "mkdir/bind", Options: []string{mkdirOption + dir + "/x:0999"}}, errdefs.IsInvalidArgument},
		"half an owner":                 {&types.Mount{Type: "mkdir/bind", Options: []string{mkdirOption + dir + "/x:0755:0"}}, errdefs.IsInvalidArgument},
		"a file system that is not one": {&types.Mount{Type: "mkfs/ext4"}, errdefs.IsNotImplemented},
	} {
		if _, err := realize(tc.m, active); err == nil || !tc.kind(err) || !strings.Contains(err.Error(), tc.m.Type) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
