package image

import (
	"archive/tar"
	"fmt"
	"runtime"
)

// PauseName is the image of a pod's first container.
const PauseName = "registry.k8s.io/pause:lab"

// Names that critest 1.34 asks for (cri-tools, pkg/framework/util.go and
// pkg/validate/consts.go). The one that it names by digest cannot be made.
const (
	e2eImages     = "registry.k8s.io/e2e-test-images/"
	critestImages = "gcr.io/k8s-staging-cri-tools/"
)

// CRI are the images that the tests of CRI pull, made of a static busybox and
// the probe program: what they expect of nginx, httpd and the like is a process
// of that name that answers HTTP.
func CRI(busybox, probe string) ([]*Image, error) {
	t, program, err := baseTree(busybox, probe)
	if err != nil {
		return nil, err
	}
	base, err := t.tar()
	if err != nil {
		return nil, err
	}
	t.file("bin/nginx", 0o755, program)
	server, err := t.tar()
	if err != nil {
		return nil, err
	}
	t.add(tar.Header{Typeflag: tar.TypeReg, Name: "nnp", Mode: 0o4755}, program)
	setuid, err := t.tar()
	if err != nil {
		return nil, err
	}
	t.file("etc/group", 0o644, fmt.Appendf(nil, group+"group-in-image:x:50000:%[1]s\n", UserName, UserID))
	grouped, err := t.tar()
	if err != nil {
		return nil, err
	}

	all := []*Image{
		runs(PauseName, base, ProbePath, "pause"),
		shell(e2eImages+"busybox:1.29-2", base),
		webServer(e2eImages+"nginx:1.14-2", server, 80),
		webServer(e2eImages+"httpd:2.4.39-4", server, 80),
		webServer(critestImages+"hostnet-nginx-"+runtime.GOARCH, server, 12003),
		runs(e2eImages+"nonewprivs:1.3", setuid, "/nnp", "euid", "Effective uid: "),
		as(shell(critestImages+"test-image-predefined-group", grouped), fmt.Sprint(UserID)),
		as(shell(critestImages+"test-image-user-uid", base), "1002"),
		as(shell(critestImages+"test-image-user-username", base), "www-data"),
		as(shell(critestImages+"test-image-user-uid-group", base), "1003:users"),
		as(shell(critestImages+"test-image-user-username-group", base), "www-data:100"),
	}
	// Three tags of one image, and images that differ.
	for _, tag := range []string{"1", "2", "3"} {
		all = append(all, labelled(shell(critestImages+"test-image-tags:"+tag, base), "tags"))
	}
	for _, name := range []string{
		"test-image-latest", "test-image-tag:test", "test-image-tag:all", "test-image-1", "test-image-2", "test-image-3",
	} {
		all = append(all, labelled(shell(critestImages+name, base), name))
	}
	return all, nil
}

// runs is an image with a command of its own.
func runs(name string, layer []byte, command ...string) *Image {
	img := shell(name, layer)
	img.Config.Cmd = command
	return img
}

// webServer listens on port, as a process called nginx that says "master
// process" on its command line and leaves its pid in the usual place.
func webServer(name string, layer []byte, port int) *Image {
	return runs(name, layer, "/bin/nginx", "web", fmt.Sprint(port), "/var/run/nginx.pid", "master process")
}

func as(img *Image, user string) *Image {
	img.Config.User = user
	return img
}

// labelled makes an image differ from the others in its configuration, and so in
// its id.
func labelled(img *Image, label string) *Image {
	img.Config.Labels = map[string]string{"lab": label}
	return img
}
