package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, tc := range []struct {
		data string
		perm fs.FileMode
	}{{"first", 0o600}, {"second, longer", 0o644}, {"", 0o400}} {
		if err := WriteFile(path, []byte(tc.data), tc.perm); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != tc.data {
			t.Errorf("read %q, %v; want %q", got, err, tc.data)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != tc.perm {
			t.Errorf("permissions: %v, %v; want %v", info.Mode(), err, tc.perm)
		}
	}
	onlyFile(t, path)
}

func TestWriteFileInTheWorkingDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := WriteFile("file", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	onlyFile(t, "file")
}

// A reader that has the old file open keeps it whole.
func TestWriteFileReplacesRatherThanRewrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	old, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := WriteFile(path, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 8)
	if n, err := old.Read(p); err != nil || string(p[:n]) != "old" {
		t.Errorf("the old file reads %q, %v", p[:n], err)
	}
}

func TestWriteFileFailsAndLeavesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	// A directory cannot be replaced by a file.
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("x"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	onlyFile(t, path)
	if err := WriteFile(filepath.Join(path, "absent", "file"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without its directory: %v", err)
	}
}

func TestWriteJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := WriteJSON(path, map[string]int{"a": 1}); err != nil {
		t.Fatal(err)
	}
	if err := WriteJSON(path, func() {}); err == nil {
		t.Error("a function was written")
	}
	const want = "{\n  \"a\": 1\n}\n"
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("read %q, %v; want %q", got, err, want)
	}
}

func onlyFile(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 || entries[0].Name() != filepath.Base(path) {
		t.Errorf("the directory holds %v, %v; want %s alone", entries, err, filepath.Base(path))
	}
}
