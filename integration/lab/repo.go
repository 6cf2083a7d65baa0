package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Repo is the root of the checkout that the working directory is in.
func Repo() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		// The tools' module has no Makefile beside its go.mod.
		if exists(filepath.Join(d, "go.mod")) && exists(filepath.Join(d, "Makefile")) {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("%s is not in a checkout of this repository", dir)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// artifacts are the built things that a lab uses, relative to the checkout. Its
// images are made from the busybox of this machine.
var artifacts = struct{ shimDir, toolDir, guest, probe, images, busybox string }{
	shimDir: "bin",
	toolDir: ".cache/bin",
	guest:   ".cache/guest",
	probe:   ".cache/bin/probe",
	images:  ".cache/images",
	busybox: "/bin/busybox",
}

// checkArtifacts names everything that has not been built at once.
func checkArtifacts(repo string) error {
	var errs []error
	for _, p := range []string{
		filepath.Join(repo, artifacts.toolDir, "containerd"),
		filepath.Join(repo, artifacts.toolDir, "ctr"),
		filepath.Join(repo, imageSource),
	} {
		if !exists(p) {
			errs = append(errs, fmt.Errorf("%s is missing: run make deps build", p))
		}
	}
	return errors.Join(errs...)
}

// ArchiveName is the file that holds an image where images are not made on the
// machine itself.
func ArchiveName(image string) string {
	return strings.NewReplacer("/", "-", ":", "-").Replace(image) + ".tar"
}
