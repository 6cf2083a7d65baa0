//go:build linux

package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestParseVersion(t *testing.T) {
	for said, want := range map[string]version{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright": {7, 2},
		"QEMU emulator version 10.0.2\n":                                            {10, 0},
	} {
		if got, err := parseVersion(said); err != nil || got != want {
			t.Errorf("%q: got %v, %v", said, got, err)
		}
	}
	for _, said := range []string{"", "QEMU emulator", "version x.y"} {
		if got, err := parseVersion(said); err == nil {
			t.Errorf("%q: got %v", said, got)
		}
	}
}

// A question that failed is asked again.
func TestInstalled(t *testing.T) {
	before := known.version
	t.Cleanup(func() { known.version = before })
	known.version = nil
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if v, err := installed(t.Context()); err == nil {
		t.Fatalf("without QEMU it is %v", v)
	}
	script := "#!/bin/sh\necho QEMU emulator version 9.8.7\n"
	if err := os.WriteFile(filepath.Join(dir, program), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if v, err := installed(t.Context()); err != nil || v != (version{9, 8}) {
		t.Errorf("got %v, %v", v, err)
	}
}

func TestRootArgs(t *testing.T) {
	for v, want := range map[version][]string{
		{7, 2}:  {"-chroot", "/a,b"},
		{8, 0}:  {"-chroot", "/a,b"},
		{8, 1}:  {"-run-with", "chroot=/a,,b"},
		{10, 0}: {"-run-with", "chroot=/a,,b"},
	} {
		if got := rootArgs("/a,b", v); !slices.Equal(got, want) {
			t.Errorf("%v: got %q", v, got)
		}
	}
}

// wantEmptyRoot checks that nothing of the host's can be reached through a
// machine's process, and nothing put there.
func wantEmptyRoot(t *testing.T, pid int) {
	t.Helper()
	top := fmt.Sprintf("/proc/%d/root", pid)
	entries, err := os.ReadDir(top + "/")
	if len(entries) != 0 || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s has %v, %v; want that there is no such place", top, entries, err)
	}
	if err := os.WriteFile(filepath.Join(top, "file"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file in %s: %v, want that there is no such place", top, err)
	}
	if err := os.Mkdir(filepath.Join(top, "dir"), 0o700); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory in %s: %v, want that there is no such place", top, err)
	}
}
