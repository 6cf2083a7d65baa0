package build

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

var someSum = strings.Repeat("ab", 32)

func TestLockRoundTrip(t *testing.T) {
	text := "# what\n# why\nlibcap2 1:2.66-4+deb12u3+b1 amd64 " + someSum + "\ncrun 1.8.1-1~x amd64 " + someSum + "\n"
	l, err := parseLock([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(l.Format()); got != text {
		t.Errorf("got %q, want %q", got, text)
	}
	if got, want := l.Packages[0].fileName(), "libcap2_1%3a2.66-4+deb12u3+b1_amd64.deb"; got != want {
		t.Errorf("file is %q, want %q", got, want)
	}
}

func TestLockRefuses(t *testing.T) {
	for text, says := range map[string]string{
		"":                                         "no packages",
		"# only words":                             "no packages",
		"crun 1":                                   "line 1 has 2 fields",
		"crun 1 amd64 " + someSum + " more":        "5 fields",
		"../crun 1 amd64 " + someSum:               "not a package's name",
		"--config-file 1 amd64 " + someSum:         "not a package's name",
		"crun latest amd64 " + someSum:             "not a version",
		"crun 1/../2 amd64 " + someSum:             "not a version",
		"crun 1 arm64 " + someSum:                  `architecture is "arm64"`,
		"crun 1 amd64 abcd":                        "not a sha256",
		"crun 1 amd64 " + strings.ToUpper(someSum): "not a sha256",
		"crun 1 amd64 " + someSum + "\n\ncrun 2 amd64 " + someSum:             "line 3: crun is there twice",
		"crun 1 amd64 " + someSum + "\n# late\n" + "libc6 1 amd64 " + someSum: "a comment below",
	} {
		path := filepath.Join(t.TempDir(), "lock")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := ReadLock(path)
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: got %v, want an invalid argument saying %q", text, err, says)
		}
	}
}

func TestCommittedLockIsInItsOwnFormat(t *testing.T) {
	const path = "../inputs.lock"
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	l, err := ReadLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(l.Format()) != string(want) {
		t.Errorf("%s would be written as\n%s", path, l.Format())
	}
}

func TestParseMadison(t *testing.T) {
	const out = `  liblzma5 | 5.4.1-1+deb12u2 | http://deb.debian.org/debian-security bookworm-security/main amd64 Packages
  liblzma5 | 5.4.1-1+deb12u1 | http://deb.debian.org/debian bookworm/main amd64 Packages
  liblzma5 | 5.4.1-1 | http://mirror/debian bookworm/main amd64 Packages
`
	if got, ok := parseMadison(out); !ok || got != "5.4.1-1+deb12u1" {
		t.Errorf("got %q, %v", got, ok)
	}
	if got, ok := parseMadison(strings.SplitAfter(out, "\n")[0]); ok {
		t.Errorf("took %q from another suite", got)
	}
}

func TestParseRecord(t *testing.T) {
	r := parseRecord("Package: crun\nDescription: runtime\n more: words\nSHA256: 12\n\nPackage: other\nSHA256: 34\n")
	if r["Package"] != "crun" || r["SHA256"] != "12" || len(r) != 3 {
		t.Errorf("got %v", r)
	}
}
