package build

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/durable"
)

// The suite that packages are taken from. Not bookworm-security: what is there
// is replaced, and then gone, at the next fix, and a lock file that names it
// cannot be fetched a week later. Security fixes reach the suite proper with
// the next point release.
const suite = "bookworm/main"

// A kernel's package is named after its release. kernelMeta depends on the
// current one.
const (
	kernelPrefix = "linux-image-"
	kernelMeta   = "linux-image-amd64"
)

// Update rewrites the lock file with the versions that Debian's stable suite
// has now, as apt's package index has them. Which packages there are stays the
// same, but for the kernel's, whose name has its release in it.
func Update(ctx context.Context, lockPath string, logf func(format string, args ...any)) error {
	lock, err := ReadLock(lockPath)
	if err != nil {
		return err
	}
	for i, p := range lock.Packages {
		next, err := resolve(ctx, p.Name)
		if err != nil {
			return fmt.Errorf("update %s: %w", p.Name, err)
		}
		if next != p {
			logf("%s %s → %s %s", p.Name, p.Version, next.Name, next.Version)
		}
		lock.Packages[i] = next
	}
	return durable.WriteFile(lockPath, lock.Format(), 0o644)
}

func resolve(ctx context.Context, name string) (Package, error) {
	if strings.HasPrefix(name, kernelPrefix) {
		version, err := suiteVersion(ctx, kernelMeta)
		if err != nil {
			return Package{}, err
		}
		record, err := show(ctx, kernelMeta, version)
		if err != nil {
			return Package{}, err
		}
		name, _, _ = strings.Cut(record["Depends"], " ")
		if !strings.HasPrefix(name, kernelPrefix) {
			return Package{}, fmt.Errorf("%s %s depends on %q, not on a kernel", kernelMeta, version, record["Depends"])
		}
	}
	version, err := suiteVersion(ctx, name)
	if err != nil {
		return Package{}, err
	}
	record, err := show(ctx, name, version)
	if err != nil {
		return Package{}, err
	}
	return Package{Name: name, Version: version, Arch: record["Architecture"], SHA256: record["SHA256"]}, nil
}

// suiteVersion is the newest version of a package in the suite.
func suiteVersion(ctx context.Context, name string) (string, error) {
	out, err := run(ctx, "", "apt-cache", "madison", name+":"+debianArch)
	if err != nil {
		return "", err
	}
	version, ok := parseMadison(string(out))
	if !ok {
		return "", fmt.Errorf("%s has no version of it, says apt-cache; is the index fresh (apt-get update)?", suite)
	}
	return version, nil
}

// parseMadison finds the suite's first line in what apt-cache(8) madison
// prints: "package | version | URI suite/component architecture Packages",
// newest version first.
func parseMadison(out string) (version string, ok bool) {
	for line := range strings.Lines(out) {
		f := strings.Split(line, "|")
		if len(f) == 3 && strings.Contains(f[2], " "+suite+" ") {
			return strings.TrimSpace(f[1]), true
		}
	}
	return "", false
}

// show returns the one-line fields of a package's record.
func show(ctx context.Context, name, version string) (map[string]string, error) {
	out, err := run(ctx, "", "apt-cache", "show", name+":"+debianArch+"="+version)
	if err != nil {
		return nil, err
	}
	return parseRecord(string(out)), nil
}

var recordField = regexp.MustCompile(`(?m)^([A-Za-z0-9-]+): (.*)$`)

// parseRecord reads the first paragraph of a control file (Debian Policy 5.1).
func parseRecord(text string) map[string]string {
	first, _, _ := strings.Cut(text, "\n\n")
	record := map[string]string{}
	for _, m := range recordField.FindAllStringSubmatch(first, -1) {
		record[m[1]] = m[2]
	}
	return record
}
