package vmmapi

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// warnings are those that the bridge has to be free of.
const warnings = "-Wall -Wextra -Werror"

// TestBridge compiles the C side of the bridge, links the whole package to the
// stand-in for the library and runs native_test.go over it. See
// testdata/standin.
func TestBridge(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no gcc")
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	standin := filepath.Join(here, "testdata", "standin")
	include := filepath.Join(standin, "include")

	t.Run("warnings", func(t *testing.T) {
		compileBridge(t, gcc, "-I"+include)
	})
	t.Run("old release", func(t *testing.T) {
		old := t.TempDir()
		param := filepath.Join(old, "sys", "param.h")
		if err := os.Mkdir(filepath.Dir(param), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(param, []byte("#define __FreeBSD_version 1403000\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := compilation(t, gcc, "-I"+old, "-I"+include, "-D__FreeBSD__=14").CombinedOutput()
		// What comes after it is the headers' own.
		_, first, _ := strings.Cut(string(out), "error: ")
		if err == nil || !strings.HasPrefix(first, `#error "package vmmapi needs FreeBSD 15`) {
			t.Errorf("%v: want to be told what is needed, before anything else:\n%s", err, out)
		}
	})
	t.Run("real headers", func(t *testing.T) {
		src := os.Getenv("FREEBSD_SRC")
		if src == "" {
			t.Skip("FREEBSD_SRC does not name a FreeBSD 15 source tree")
		}
		// As installed: machine and x86 are the processor's own headers, and some
		// are the kernel's.
		dir := t.TempDir()
		for name, target := range map[string]string{
			"machine": "sys/amd64/include", "x86": "sys/x86/include", "sys": "sys/sys",
			"vm": "sys/vm", "dev": "sys/dev", "errno.h": "sys/sys/errno.h", "stdint.h": "sys/sys/stdint.h",
		} {
			if err := os.Symlink(filepath.Join(src, target), filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		compileBridge(t, gcc, "-nostdinc", "-U__linux__", "-U__linux", "-Ulinux", "-D__FreeBSD__=15",
			"-isystem", dir, "-isystem", filepath.Join(src, "include"), "-isystem", filepath.Join(src, "lib/libvmmapi"))
	})
	t.Run("linked", func(t *testing.T) {
		dir := t.TempDir()
		object := filepath.Join(dir, "vmmapi.o")
		run(t, nil, gcc, append(strings.Fields(warnings), "-I"+include, "-c", "-o", object, filepath.Join(standin, "vmmapi.c"))...)
		run(t, nil, "ar", "rcs", filepath.Join(dir, "libvmmapi.a"), object)
		// CGO_CFLAGS are for the runtime's own C, too, which is not free of what
		// -Wextra finds. LIBRARY_PATH, unlike CGO_LDFLAGS, leaves the build cache
		// its keys.
		env := append(os.Environ(), "CGO_ENABLED=1", "CGO_CFLAGS=-O1 -Wall -Werror -I"+include, "LIBRARY_PATH="+dir)
		run(t, env, "go", "vet", "-tags", "vmmapi_standin", ".")
		run(t, env, "go", "test", "-count=1", "-tags", "vmmapi_standin", "-run", "^TestNative", ".")
	})
}

func compileBridge(t *testing.T, gcc string, flags ...string) {
	t.Helper()
	if out, err := compilation(t, gcc, flags...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// compilation is gcc with the C side of the bridge, for its errors alone.
func compilation(t *testing.T, gcc string, flags ...string) *exec.Cmd {
	t.Helper()
	src := filepath.Join(t.TempDir(), "bridge.c")
	if err := os.WriteFile(src, []byte("#include \"bridge.h\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append(strings.Fields(warnings), "-fsyntax-only", "-iquote", ".")
	return exec.CommandContext(t.Context(), gcc, append(append(args, flags...), src)...)
}

func run(t *testing.T, env []string, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = env
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out.String())
	}
}
