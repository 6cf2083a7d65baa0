package image

import (
	"archive/tar"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path"
	"runtime"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ProbePath is where the probe program is in the busybox image.
const ProbePath = "/bin/probe"

// Ids that files of the busybox image belong to, beside root.
const (
	UserName = "user"
	UserID   = 1000
)

// Users and groups of the images, but for %s.
const (
	passwd = `root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
%s:x:%d:%d:user:/home/user:/bin/sh
`
	group = `root:x:0:
www-data:x:33:
nogroup:x:65534:
%s:x:%d:
`
)

// Busybox is an image of a static busybox with all its applets and the probe
// program, both given as paths on this machine. Below /odd it has what a file
// system on the way to the container may lose: special mode bits, owners,
// extended attributes, links, a FIFO, and unusual names.
func Busybox(name, busybox, probe string) (*Image, error) {
	t, probeData, err := baseTree(busybox, probe)
	if err != nil {
		return nil, err
	}
	t.dir("odd", 0o755)
	t.add(tar.Header{Typeflag: tar.TypeDir, Name: "home/user/", Mode: 0o700, Uid: UserID, Gid: UserID}, nil)
	odd(t, probeData)

	layer, err := t.tar()
	if err != nil {
		return nil, err
	}
	return shell(name, layer), nil
}

// shell is an image of layer that runs a shell by default.
func shell(name string, layer []byte) *Image {
	return &Image{
		Name:         name,
		Architecture: runtime.GOARCH,
		Layer:        layer,
		Config: ocispec.ImageConfig{
			Env:        []string{"PATH=/bin"},
			Cmd:        []string{"/bin/sh"},
			WorkingDir: "/",
		},
	}
}

// baseTree has busybox with all its applets, the probe program, whose bytes it
// also returns, users and the directories that there have to be.
func baseTree(busybox, probe string) (*tree, []byte, error) {
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, nil, fmt.Errorf("list the applets of %s: %w", busybox, err)
	}
	busyboxData, err := readStatic(busybox)
	if err != nil {
		return nil, nil, err
	}
	probeData, err := readStatic(probe)
	if err != nil {
		return nil, nil, err
	}

	t := new(tree)
	for _, d := range []string{"bin", "dev", "etc", "home", "mnt", "proc", "root", "sys", "usr", "var", "var/run"} {
		t.dir(d, 0o755)
	}
	t.dir("tmp", 0o1777)
	t.file("etc/passwd", 0o644, fmt.Appendf(nil, passwd, UserName, UserID, UserID))
	t.file("etc/group", 0o644, fmt.Appendf(nil, group, UserName, UserID))
	box := tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}
	t.add(box, busyboxData)
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			t.hardlink(path.Join("bin", applet), box)
		}
	}
	tool := tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(ProbePath, "/"), Mode: 0o755}
	t.add(tool, probeData)
	// Applets that Debian's busybox does not have.
	for _, applet := range []string{"ipcs", "pgrep"} {
		t.hardlink(path.Join("bin", applet), tool)
	}
	return t, probeData, nil
}

// odd adds what checkOdd of the probe looks for, and the probe itself with the
// set-uid bit.
func odd(t *tree, program []byte) {
	t.add(tar.Header{Typeflag: tar.TypeReg, Name: "odd/setuid", Mode: 0o4755}, program)
	t.add(tar.Header{Typeflag: tar.TypeReg, Name: "odd/setgid", Mode: 0o2755, Gid: UserID}, []byte("x"))
	t.dir("odd/sticky", 0o1777)
	owned := tar.Header{Typeflag: tar.TypeReg, Name: "odd/owned", Mode: 0o640, Uid: UserID, Gid: 4_000_000}
	t.add(owned, []byte("owned"))
	t.hardlink("odd/link", owned)
	t.add(tar.Header{
		Typeflag: tar.TypeReg, Name: "odd/xattr", Mode: 0o644,
		PAXRecords: map[string]string{"SCHILY.xattr.user.lab": "kept"},
	}, []byte("x"))
	t.symlink("odd/dangling", "/nowhere/at/all")
	t.symlink("odd/relative", "../etc/passwd")
	t.add(tar.Header{Typeflag: tar.TypeFifo, Name: "odd/fifo", Mode: 0o600}, nil)
	t.file("odd/"+strings.Repeat("n", 255), 0o644, []byte("long name"))
	t.file("odd/sp ace\nnewline", 0o644, []byte("x"))
}

// readStatic reads a program that must not need an interpreter: there will be
// no other file beside it.
func readStatic(name string) ([]byte, error) {
	f, err := elf.Open(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return nil, fmt.Errorf("%s is not statically linked", name)
		}
	}
	return os.ReadFile(name)
}
