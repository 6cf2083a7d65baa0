package checkpoint

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

var machine = Machine{
	Backend: "qemu", Monitor: "7.2.22", CPU: "tcg max", VCPUs: 1, MemoryMiB: 256,
	Hardware: []string{"q35", "link: tap"}, Kernel: "k", Initrd: "i", Cmdline: "quiet",
}

// written is the directory of a checkpoint.
func written(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string][]byte{
		"memory": append(make([]byte, 3*blockSize), "a young guest's memory"...),
		"state":  []byte("devices"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Write(dir, machine, "memory", "state"); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestWriteAndOpen(t *testing.T) {
	dir := written(t)
	m, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(m.Machine, machine) || len(m.Files) != 2 {
		t.Errorf("read %+v", m)
	}
	if err := m.Machine.Agree(machine); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 3 {
		t.Errorf("files: %v, %v", left, err)
	}
	// It may be moved as a whole.
	moved := filepath.Join(t.TempDir(), "moved")
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(moved); err != nil {
		t.Error(err)
	}
	if is, err := Exists(moved); !is || err != nil {
		t.Errorf("exists: %v, %v", is, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	edit := func(old, new string) func(dir string) error {
		return func(dir string) error {
			path := filepath.Join(dir, ManifestName)
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, bytes.Replace(data, []byte(old), []byte(new), 1), 0o600)
		}
	}
	for name, tc := range map[string]struct {
		spoil func(dir string) error
		why   string
	}{
		"another format":      {edit(`"format": 1`, `"format": 2`), "format is 2"},
		"no JSON":             {edit("{", "["), ManifestName},
		"half a manifest":     {func(dir string) error { return os.Truncate(filepath.Join(dir, ManifestName), 100) }, ManifestName},
		"a file from outside": {edit(`"state"`, `"../state"`), "not the name of a file"},
		"a file is missing":   {func(dir string) error { return os.Remove(filepath.Join(dir, "state")) }, "state is missing"},
		"a file is truncated": {func(dir string) error { return os.Truncate(filepath.Join(dir, "memory"), 70000) }, "memory has 70000 bytes"},
		"a file was altered": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "state"), []byte("devixes"), 0o600)
		}, "state was changed"},
		"a link instead of a file": {func(dir string) error {
			path := filepath.Join(dir, "state")
			if err := os.Rename(path, path+"2"); err != nil {
				return err
			}
			return os.Symlink("state2", path)
		}, "state is not a file"},
	} {
		dir := written(t)
		if err := tc.spoil(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tc.why) {
			t.Errorf("%s: %v, want that %s", name, err, tc.why)
		}
	}
	if _, err := Open(t.TempDir()); !errdefs.IsNotFound(err) {
		t.Errorf("nothing: %v", err)
	}
}

func TestWriteFailsWhole(t *testing.T) {
	dir := t.TempDir()
	if err := Write(dir, machine, "nowhere"); err == nil {
		t.Error("described a file that is not there")
	}
	if is, err := Exists(dir); is || err != nil {
		t.Errorf("exists: %v, %v", is, err)
	}
}

func TestAgreeNamesTheDifference(t *testing.T) {
	for what, change := range map[string]func(*Machine){
		"monitor":       func(m *Machine) { m.Monitor = "8" },
		"processor":     func(m *Machine) { m.CPU = "kvm" },
		"MiB of memory": func(m *Machine) { m.MemoryMiB = 512 },
		"kernel":        func(m *Machine) { m.Kernel = "x" },
		"link: vsock":   func(m *Machine) { m.Hardware = []string{"q35", "link: vsock"} },
		"nic":           func(m *Machine) { m.Hardware = append(m.Hardware[:2:2], "nic") },
		"none":          func(m *Machine) { m.Hardware = m.Hardware[:1] },
	} {
		other := machine
		change(&other)
		if err := machine.Agree(other); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestDigest(t *testing.T) {
	dir := t.TempDir()
	sum := func(name string, write func(*os.File) error) string {
		t.Helper()
		path := filepath.Join(dir, name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := write(f); err != nil {
			t.Fatal(err)
		}
		d, err := Digest(path)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Digest(path); err != nil || again != d {
			t.Errorf("%s: %s, then %s, %v", name, d, again, err)
		}
		return d
	}
	at := func(size, offset int64, data string) func(*os.File) error {
		return func(f *os.File) error {
			if err := f.Truncate(size); err != nil {
				return err
			}
			_, err := f.WriteAt([]byte(data), offset)
			return err
		}
	}
	const size = 5*blockSize + 100
	holes := sum("holes", at(size, 2*blockSize+7, "data"))
	full := make([]byte, size)
	copy(full[2*blockSize+7:], "data")
	if got := sum("full", at(size, 0, string(full))); got != holes {
		t.Error("a file with holes and one without, of the same contents, differ")
	}
	for name, write := range map[string]func(*os.File) error{
		"elsewhere in the block": at(size, 2*blockSize+8, "data"),
		"in another block":       at(size, 3*blockSize+7, "data"),
		"other data":             at(size, 2*blockSize+7, "date"),
		"longer":                 at(size+1, 2*blockSize+7, "data"),
		"nothing":                at(size, 0, ""),
		"at the end as well":     at(size, size-1, "x"),
		"empty":                  func(*os.File) error { return nil },
	} {
		if sum(strings.ReplaceAll(name, " ", "-"), write) == holes {
			t.Errorf("%s: the same digest", name)
		}
	}
}

// BenchmarkDigest reads 256 MiB of which a quarter is not zero.
func BenchmarkDigest(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "memory"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	const size = 256 << 20
	data := bytes.Repeat([]byte("0123456789abcdef"), size/4/16)
	if _, err := f.WriteAt(data, 0); err != nil {
		b.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for b.Loop() {
		if _, err := digest(f); err != nil {
			b.Fatal(err)
		}
	}
}
