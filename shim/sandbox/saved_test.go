package sandbox

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/ninep"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
)

func TestSavedIsReadAsItWasWritten(t *testing.T) {
	dir := t.TempDir()
	must(t, vacantFor(dir))
	if err := vacantFor(dir); !errdefs.IsAlreadyExists(err) {
		t.Errorf("two in one place: %v", err)
	}
	if _, err := readSaved(dir); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("read what was not written: %v", err)
	}
	was := &savedSandbox{
		Format: savedFormat, Namespace: "ns", Name: "c1", Container: "c0", Events: 7, Size: config.Size{VCPUs: 2, MemoryMiB: 300},
		Roots: map[string]savedTree{"rootfs": {Stream: "9p/c0/rootfs", Session: &ninep.Saved{Msize: 4096}}},
	}
	must(t, was.write(dir))
	is, err := readSaved(dir)
	must(t, err)
	if is.Container != "c0" || is.Events != 7 || is.Size != was.Size || is.Roots["rootfs"].Session.Msize != 4096 {
		t.Errorf("read %+v", is)
	}
	for group, want := range map[string]string{"/ns/c1": "/ns/c2", "/ns/c0": "/ns/c2", "/ns/c2": "/ns/c2", "/my/group": "/my/group"} {
		if got := is.cgroupFor("c2", group); got != want {
			t.Errorf("a copy whose spec says %s is put into %s, not %s", group, got, want)
		}
	}

	path := filepath.Join(dir, savedFile)
	whole, err := os.ReadFile(path)
	must(t, err)
	for name, c := range map[string]struct {
		content []byte
		want    string
	}{
		"altered":   {bytes.Replace(whole, []byte(`"events":7`), []byte(`"events":8`), 1), "it was changed"},
		"cut short": {whole[:len(whole)/2], "unexpected end"},
		"nothing":   {nil, "unexpected end"},
	} {
		must(t, os.WriteFile(path, c.content, 0o600))
		if _, err := readSaved(dir); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := *was
	other.Format++
	must(t, other.write(dir))
	if _, err := readSaved(dir); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "format") {
		t.Errorf("another format: %v", err)
	}
}
