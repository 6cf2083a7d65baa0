package build

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// debsEnv names a directory of fetched packages (`make guest` fills
// .cache/debs). The tests of whole builds take some seconds, and fetch 75 MB
// when the directory is empty, so they run only where it is set.
const debsEnv = "BHYVE_DEBS"

// buildOptions has an empty base cache, and the packages that debsEnv names.
func buildOptions(t *testing.T) Options {
	t.Helper()
	debs := os.Getenv(debsEnv)
	if debs == "" {
		t.Skipf("%s is not set", debsEnv)
	}
	debs, err := filepath.Abs(debs)
	if err != nil {
		t.Fatal(err)
	}
	cache := t.TempDir()
	packages, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packages {
		if err := os.Symlink(p, filepath.Join(cache, filepath.Base(p))); err != nil {
			t.Fatal(err)
		}
	}
	agent := filepath.Join(t.TempDir(), "agent")
	write(t, agent, string(makeELF(t, 0, []byte("agent"))))
	return Options{Agent: agent, Lock: "../inputs.lock", Cache: cache, Out: t.TempDir(), Logf: t.Logf}
}

func TestImage(t *testing.T) {
	o := buildOptions(t)
	img, err := Image(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Verify(); err != nil {
		t.Error(err)
	}
	for name := range readDir(t, o.Cache) {
		if name != "base" && !strings.HasSuffix(name, ".deb") {
			t.Errorf("%s is left in the cache", name)
		}
	}
	initrd, err := os.ReadFile(img.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := readCpio(initrd)
	if err != nil {
		t.Fatal(err)
	}
	checkModules(t, tr)
	checkPrograms(t, tr)
	for name, n := range tr {
		if parent := filepath.Dir(name); parent != "." && tr[parent].mode&modeDir == 0 {
			t.Errorf("%s has no directory", name)
		}
		if n.mode&0o022 != 0 && name != "tmp" {
			t.Errorf("%s has mode %o: others may write to it", name, n.mode)
		}
	}

	t.Run("the same inputs give the same bytes", func(t *testing.T) {
		again := buildOptions(t) // another cache: everything is made anew
		if _, err := Image(t.Context(), again); err != nil {
			t.Fatal(err)
		}
		first, second := readDir(t, o.Out), readDir(t, again.Out)
		if len(first) != 3 || len(second) != 3 {
			t.Errorf("%d and %d files, want three", len(first), len(second))
		}
		for name := range first {
			if len(first[name]) == 0 || !bytes.Equal(first[name], second[name]) {
				t.Errorf("%s differs: %d and %d bytes", name, len(first[name]), len(second[name]))
			}
		}
	})
	t.Run("an image is replaced only when it has to be", func(t *testing.T) {
		rebuild := func(what string, want bool) {
			t.Helper()
			before := inode(t, img.Initrd)
			if _, err := Image(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			if got := inode(t, img.Initrd) != before; got != want {
				t.Errorf("%s: replaced is %v, want %v", what, got, want)
			}
		}
		rebuild("unchanged", false)
		write(t, img.Initrd, strings.Repeat("x", len(initrd)))
		rebuild("damaged", true)
		write(t, o.Agent, string(makeELF(t, 0, []byte("another agent"))))
		rebuild("another agent", true)
	})
}

func checkModules(t *testing.T, tr tree) {
	loaded := map[string]bool{}
	for path := range strings.FieldsSeq(string(tr[moduleList].data)) {
		n, ok := tr[strings.TrimPrefix(path, "/")]
		if !ok {
			t.Errorf("%s lists %s, which is not there", moduleList, path)
			continue
		}
		file := filepath.Join(t.TempDir(), filepath.Base(path))
		write(t, file, string(n.data))
		depends, err := readDepends(file)
		if err != nil {
			t.Error(err)
		}
		for _, dep := range depends {
			if !loaded[dep] {
				t.Errorf("%s comes before %s, which it needs", path, dep)
			}
		}
		loaded[canonicalModule(path)] = true
	}
	for _, name := range modules {
		if !loaded[canonicalModule(name)] {
			t.Errorf("%s is not loaded", name)
		}
	}
}

func checkPrograms(t *testing.T, tr tree) {
	var libraries []string
	for name := range tr {
		libraries = append(libraries, filepath.Base(name))
	}
	for name, n := range tr {
		if !bytes.HasPrefix(n.data, []byte("\x7fELF")) || strings.HasSuffix(name, ".ko") {
			continue
		}
		links, err := readLinkage(bytes.NewReader(n.data))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if i := links.interpreter; i != "" && tr[strings.TrimPrefix(i, "/")].mode != 0o100755 {
			t.Errorf("%s wants %s, which is not there as a program", name, i)
		}
		for _, soname := range links.needed {
			if !slices.Contains(libraries, soname) {
				t.Errorf("%s needs %s, which is not there", name, soname)
			}
		}
	}
	for _, name := range []string{agentPath, program.to} {
		if tr[name].mode != 0o100755 || len(tr[name].data) == 0 {
			t.Errorf("%s has mode %o and %d bytes", name, tr[name].mode, len(tr[name].data))
		}
	}
}

// inode tells a file from the one that replaces it.
func inode(t *testing.T, path string) uint64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return uint64(st.Sys().(*syscall.Stat_t).Ino)
}

func readDir(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			data = nil // a directory
		}
		files[e.Name()] = data
	}
	return files
}
