package guest

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
)

// writeImage makes an image directory with a manifest that fits it, after
// change has had its way with the manifest.
func writeImage(t *testing.T, change func(*Manifest)) string {
	t.Helper()
	dir := t.TempDir()
	m := Manifest{
		Format:   Format,
		Arch:     runtime.GOARCH,
		Protocol: agentproto.Version,
		// sha256 of "kernel" and "initrd".
		Kernel: File{Name: "vmlinux", Size: 6, SHA256: "6923dd1bc0460082c5d55a831908c24a282860b7f1cd6c2b79cf1bc8857c639c"},
		Initrd: File{Name: "initrd.img", Size: 6, SHA256: "09e6c018d2c8c4903308613dd1b72484d57eadf12ec50ddc8f52e5accce470f2"},
	}
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("vmlinux", []byte("kernel"))
	write("initrd.img", []byte("initrd"))
	if change != nil {
		change(&m)
	}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	write(ManifestName, data)
	return dir
}

func TestOpen(t *testing.T) {
	dir := writeImage(t, nil)
	img, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dir, "vmlinux"); img.Kernel != want {
		t.Errorf("kernel is %s, want %s", img.Kernel, want)
	}
	if want := filepath.Join(dir, "initrd.img"); img.Initrd != want {
		t.Errorf("initrd is %s, want %s", img.Initrd, want)
	}
	if err := img.Verify(); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Manifest)
		damage func(t *testing.T, dir string)
		kind   error
		says   string
	}{
		{
			name:   "no image",
			damage: func(t *testing.T, dir string) { remove(t, dir, ManifestName) },
			kind:   errdefs.ErrNotFound, says: "make guest",
		},
		{
			name:   "no kernel",
			damage: func(t *testing.T, dir string) { remove(t, dir, "vmlinux") },
			kind:   errdefs.ErrNotFound, says: "vmlinux is missing",
		},
		{
			name:   "short initrd",
			damage: func(t *testing.T, dir string) { truncate(t, dir, "initrd.img") },
			kind:   errdefs.ErrFailedPrecondition, says: "has 0 bytes, its manifest says 6",
		},
		{
			name:   "not a manifest",
			damage: func(t *testing.T, dir string) { truncate(t, dir, ManifestName) },
			kind:   errdefs.ErrFailedPrecondition, says: ManifestName,
		},
		{
			name:   "another format",
			change: func(m *Manifest) { m.Format++ },
			kind:   errdefs.ErrFailedPrecondition, says: "format",
		},
		{
			name:   "another protocol",
			change: func(m *Manifest) { m.Protocol++ },
			kind:   errdefs.ErrFailedPrecondition, says: "protocol",
		},
		{
			name:   "another architecture",
			change: func(m *Manifest) { m.Arch = "s390x" },
			kind:   errdefs.ErrFailedPrecondition, says: `"s390x"`,
		},
		{
			name:   "a file outside",
			change: func(m *Manifest) { m.Kernel.Name = "../vmlinux" },
			kind:   errdefs.ErrFailedPrecondition, says: "not the name of a file",
		},
		{
			name:   "a directory for a file",
			change: func(m *Manifest) { m.Initrd.Name = "." },
			kind:   errdefs.ErrFailedPrecondition,
		},
		{
			name:   "no name",
			change: func(m *Manifest) { m.Initrd = File{} },
			kind:   errdefs.ErrFailedPrecondition, says: "not the name of a file",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := writeImage(t, tt.change)
			if tt.damage != nil {
				tt.damage(t, dir)
			}
			_, err := Open(dir)
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %v saying %q", err, tt.kind, tt.says)
			}
		})
	}
}

func TestVerifyFindsDamage(t *testing.T) {
	dir := writeImage(t, nil)
	img, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(img.Initrd, []byte("inItrd"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := img.Verify(); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "initrd.img") {
		t.Errorf("got %v, want a failed precondition about initrd.img", err)
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Truncate(filepath.Join(dir, name), 0); err != nil {
		t.Fatal(err)
	}
}
