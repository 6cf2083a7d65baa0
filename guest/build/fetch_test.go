package build

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeApt puts a program in apt-get's place that logs its calls and "downloads"
// what says. It fails to until it has been told to update, if stale is set.
func fakeApt(t *testing.T, says string, stale bool) (calls func() []string) {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "apt-get"), `#!/bin/sh
here='`+dir+`'
for last; do :; done
case " $* " in
*" update "*) echo update >>"$here/calls"; rm -f "$here/stale" ;;
*" download "*)
	echo "$last" >>"$here/calls"
	if [ -e "$here/stale" ]; then echo "E: no such version" >&2; exit 100; fi
	printf %s '`+says+`' >crun_1%3a2_amd64.deb ;;
esac
`)
	if stale {
		write(t, filepath.Join(dir, "stale"), "")
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() []string {
		data, _ := os.ReadFile(filepath.Join(dir, "calls"))
		return strings.Fields(string(data))
	}
}

func TestFetch(t *testing.T) {
	pkg := Package{Name: "crun", Version: "1:2", Arch: "amd64", SHA256: digest([]byte("right"))}
	const download = "crun:amd64=1:2"
	for _, tt := range []struct {
		name, cached, served string
		stale                bool
		calls                []string
		fails                string
	}{
		{name: "in the cache", cached: "right"},
		{name: "not in the cache", served: "right", calls: []string{download}},
		{name: "damaged in the cache", cached: "rig", served: "right", calls: []string{download}},
		{name: "stale index", served: "right", stale: true, calls: []string{download, "update", download}},
		{name: "another file under the name", served: "wrong", calls: []string{download}, fails: "the lock file says " + pkg.SHA256},
	} {
		t.Run(tt.name, func(t *testing.T) {
			calls := fakeApt(t, tt.served, tt.stale)
			f := &fetcher{cache: t.TempDir(), logf: t.Logf}
			path := filepath.Join(f.cache, pkg.fileName())
			if tt.cached != "" {
				write(t, path, tt.cached)
			}
			got, err := f.fetch(t.Context(), pkg)
			if !slices.Equal(calls(), tt.calls) {
				t.Errorf("apt was asked for %q, want %q", calls(), tt.calls)
			}
			left, rerr := os.ReadDir(f.cache)
			if rerr != nil {
				t.Fatal(rerr)
			}
			if tt.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fails) {
					t.Errorf("got %v, want an error saying %q", err, tt.fails)
				}
				if len(left) != 0 {
					t.Errorf("%v is left in the cache", left)
				}
				return
			}
			if err != nil || got != path {
				t.Fatalf("got %q, %v", got, err)
			}
			if data, _ := os.ReadFile(got); string(data) != "right" || len(left) != 1 {
				t.Errorf("%q is in the cache, and %v", data, left)
			}
		})
	}
}

func TestFetchSaysWhatToDoWhenAVersionIsGone(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "apt-get"), "#!/bin/sh\necho 'E: gone' >&2\nexit 100\n")
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	f := &fetcher{cache: t.TempDir(), logf: t.Logf}
	_, err := f.fetch(t.Context(), Package{Name: "crun", Version: "1", Arch: "amd64", SHA256: someSum})
	for _, want := range []string{"fetch crun", "E: gone", "-update", "snapshot.debian.org"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error saying %q", err, want)
		}
	}
}
