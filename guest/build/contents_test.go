package build

import (
	"bytes"
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func fakeModules(depends map[string][]string) *moduleSet {
	s := &moduleSet{files: map[string]string{}, builtin: map[string]bool{"ipv6": true}}
	for name := range depends {
		s.files[name] = name
	}
	s.depends = func(file string) ([]string, error) { return depends[file], nil }
	return s
}

func TestModulesInOrder(t *testing.T) {
	s := fakeModules(map[string][]string{
		"ring": nil, "virtio": {"ring"}, "pci": {"ring", "virtio", "ipv6"}, "virtio_net": {"virtio", "failover"}, "failover": nil,
	})
	got, err := s.inOrder([]string{"virtio-net", "pci", "virtio", "ipv6"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"ring", "virtio", "failover", "virtio_net", "pci"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestModulesInOrderEndsOnACycle(t *testing.T) {
	s := fakeModules(map[string][]string{"a": {"b"}, "b": {"a"}})
	if got, err := s.inOrder([]string{"a"}); err != nil || len(got) != 2 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestMissingModuleNamesWhoWantsIt(t *testing.T) {
	s := fakeModules(map[string][]string{"9p": {"netfs"}, "netfs": {"gone"}})
	_, err := s.inOrder([]string{"9p"})
	if err == nil || !strings.Contains(err.Error(), "9p → netfs → gone") {
		t.Errorf("got %v", err)
	}
}

func TestFindModules(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "kernel/drivers/virtio-rng.ko"), "")
	write(t, filepath.Join(dir, "modules.builtin"), "kernel/net/ipv6/ipv6.ko\nkernel/lib/crc-x.ko\n")
	s, err := findModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	if s.files["virtio_rng"] == "" || !s.builtin["ipv6"] || !s.builtin["crc_x"] || len(s.builtin) != 2 {
		t.Errorf("got %+v", s)
	}
}

func TestParseDepends(t *testing.T) {
	got := parseDepends("license=GPL\x00depends=virtio-ring,virtio\x00name=x\x00")
	if want := []string{"virtio_ring", "virtio"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := parseDepends("license=GPL\x00depends=\x00"); got != nil {
		t.Errorf("got %v, want none", got)
	}
}

func TestAgentMustBeStatic(t *testing.T) {
	dynamic := makeELF(t, elf.PT_INTERP, []byte("/lib64/ld-linux-x86-64.so.2\x00"))
	if _, err := agentArchive(dynamic); err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("got %v", err)
	}
	if _, err := agentArchive([]byte("#!/bin/sh\n")); err == nil {
		t.Error("a script was taken")
	}
	static := makeELF(t, elf.PT_NOTE, nil)
	archive, err := agentArchive(static)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := readCpio(archive)
	if err != nil || len(tr) != 1 || tr["init"].mode != 0o100755 || !bytes.Equal(tr["init"].data, static) {
		t.Errorf("got %v, %v", tr, err)
	}
}

func TestProgramWithoutItsInterpreter(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "usr/bin/p"), string(makeELF(t, elf.PT_INTERP, []byte("/lib64/ld-x.so\x00"))))
	err := addProgram(tree{}, root, "usr/bin/p", "bin/p")
	if err == nil || !strings.Contains(err.Error(), "ld-x.so") || !strings.Contains(err.Error(), "lock file") {
		t.Errorf("got %v", err)
	}
	if err := addProgram(tree{}, root, "usr/bin/q", "bin/q"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestOneKernelOnly(t *testing.T) {
	root := t.TempDir()
	if _, err := kernelRelease(root); err == nil || !strings.Contains(err.Error(), "0 kernels") {
		t.Errorf("none: got %v", err)
	}
	write(t, filepath.Join(root, "boot/vmlinuz-6.1.0-50-amd64"), "")
	if got, err := kernelRelease(root); err != nil || got != "6.1.0-50-amd64" {
		t.Errorf("one: got %q, %v", got, err)
	}
	write(t, filepath.Join(root, "boot/vmlinuz-6.1.0-51-amd64"), "")
	if _, err := kernelRelease(root); err == nil || !strings.Contains(err.Error(), "2 kernels") {
		t.Errorf("two: got %v", err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}
