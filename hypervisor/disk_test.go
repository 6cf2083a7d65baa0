package hypervisor

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func newFile(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDiskOpens(t *testing.T) {
	for _, readOnly := range []bool{false, true} {
		f, err := Disk{newFile(t, SectorSize), readOnly}.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("x"), 0); (err != nil) != readOnly {
			t.Errorf("read-only %v: write: %v", readOnly, err)
		}
	}
}

func TestDiskThatIsNone(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, is := range map[string]func(error) bool{
		"/nonexistent/disk": errdefs.IsNotFound,
		t.TempDir():         errdefs.IsInvalidArgument,
		fifo:                errdefs.IsInvalidArgument,
		"/dev/null":         errdefs.IsInvalidArgument,
		newFile(t, 0):       errdefs.IsInvalidArgument,
		newFile(t, 1000):    errdefs.IsInvalidArgument,
	} {
		for _, readOnly := range []bool{false, true} {
			if f, err := (Disk{path, readOnly}).Open(); !is(err) {
				t.Errorf("%s: %v", path, err)
				f.Close()
			}
		}
	}
}

func TestDisksOfAMachine(t *testing.T) {
	many := func(n int) (disks []Disk) {
		for i := range n {
			disks = append(disks, Disk{Path: "/disks/" + strconv.Itoa(i)})
		}
		return disks
	}
	isNil := func(err error) bool { return err == nil }
	for name, c := range map[string]struct {
		disks []Disk
		dir   string
		is    func(error) bool
	}{
		"none":                   {nil, "/saved", isNil},
		"as many as there may":   {many(MaxDisks), "", isNil},
		"one more":               {many(MaxDisks + 1), "", errdefs.IsInvalidArgument},
		"no path":                {make([]Disk, 1), "", errdefs.IsInvalidArgument},
		"relative path":          {[]Disk{{Path: "disk"}}, "", errdefs.IsInvalidArgument},
		"twice":                  {[]Disk{{"/disks/a", true}, {"/disks//a", true}}, "", errdefs.IsInvalidArgument},
		"with a checkpoint":      {many(1), "/saved", errdefs.IsNotImplemented},
		"one more, and with one": {many(MaxDisks + 1), "/saved", errdefs.IsInvalidArgument},
	} {
		cfg := Config{ID: "a", Dir: "/a", Kernel: "/k", Initrd: "/i", VCPUs: 1, MemoryMiB: MinMemoryMiB, Disks: c.disks, CheckpointDir: c.dir}
		if err := cfg.Validate(Capabilities{MaxVCPUs: 1}); !c.is(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
