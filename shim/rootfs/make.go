package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
)

// The steps that the type of a mount can begin with.
const (
	stepFormat = "format"
	stepMkdir  = "mkdir"
	stepMkfs   = "mkfs"
)

// mkdirOption names a directory to make: path[:mode[:uid:gid]].
const mkdirOption = "X-containerd.mkdir.path="

// steps are those that a type begins with: "format/mkdir/overlay".
func steps(typ string) []string {
	var found []string
	for {
		step, rest, ok := strings.Cut(typ, "/")
		if !ok || step != stepFormat && step != stepMkdir && step != stepMkfs {
			return found
		}
		found = append(found, step)
		typ = rest
	}
}

// realize carries out the steps of m and returns what is left to be mounted.
func realize(m *types.Mount, active []mount.ActiveMount) (mount.Mount, error) {
	made := mount.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options}
	for _, step := range steps(m.Type) {
		made.Type = strings.TrimPrefix(made.Type, step+"/")
		var err error
		switch step {
		case stepFormat:
			err = format(&made, active)
		case stepMkdir:
			err = mkdirs(&made, active)
		default:
			err = fmt.Errorf("step %q: %w", step, errdefs.ErrNotImplemented)
		}
		if err != nil {
			return made, fmt.Errorf("rootfs of type %q: %w", m.Type, err)
		}
	}
	return made, nil
}

// reference is what format replaces: {{ mount 0 }}, {{ overlay 2 1 }}.
var reference = regexp.MustCompile(`\{\{\s*(\w+)((?:\s+\d+)+)\s*\}\}`)

// format replaces the references to other mounts in everything that m says.
func format(m *mount.Mount, active []mount.ActiveMount) (err error) {
	replace := func(s string) string {
		return reference.ReplaceAllStringFunc(s, func(r string) string {
			parts := reference.FindStringSubmatch(r)
			value, rerr := resolve(parts[1], strings.Fields(parts[2]), active)
			if rerr != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w", r, rerr))
			}
			return value
		})
	}
	m.Source, m.Target = replace(m.Source), replace(m.Target)
	options := make([]string, len(m.Options))
	for i, o := range m.Options {
		options[i] = replace(o)
	}
	m.Options = options
	return err
}

// resolve is the value of a reference.
func resolve(what string, args []string, active []mount.ActiveMount) (string, error) {
	var chosen []mount.ActiveMount
	for _, a := range args {
		i, err := strconv.Atoi(a)
		if err != nil || i >= len(active) {
			return "", fmt.Errorf("there are %d mounts before it: %w", len(active), errdefs.ErrInvalidArgument)
		}
		chosen = append(chosen, active[i])
	}
	switch {
	case what == "overlay" && len(args) == 2:
		return overlay(args, active), nil
	case len(chosen) != 1:
	case what == "mount":
		return chosen[0].MountPoint, nil
	case what == "source":
		return chosen[0].Source, nil
	case what == "target":
		return chosen[0].Target, nil
	}
	return "", fmt.Errorf("no such reference: %w", errdefs.ErrInvalidArgument)
}

// overlay is the mount points from one to another, in either direction, as
// overlay's lowerdir has them.
func overlay(args []string, active []mount.ActiveMount) string {
	from, _ := strconv.Atoi(args[0])
	to, _ := strconv.Atoi(args[1])
	step := 1
	if from > to {
		step = -1
	}
	var dirs []string
	for i := from; ; i += step {
		dirs = append(dirs, active[i].MountPoint)
		if i == to {
			return strings.Join(dirs, ":")
		}
	}
}

// mkdirs makes the directories that m asks for, in the mounts that it is made of
// and nowhere else.
func mkdirs(m *mount.Mount, active []mount.ActiveMount) error {
	var left []string
	for _, o := range m.Options {
		dir, ok := strings.CutPrefix(o, mkdirOption)
		if !ok {
			left = append(left, o)
			continue
		}
		if err := mkdir(dir, active); err != nil {
			return fmt.Errorf("%s: %w", o, err)
		}
	}
	m.Options = left
	return nil
}

func mkdir(spec string, active []mount.ActiveMount) error {
	parts := strings.Split(spec, ":")
	mode, uid, gid := os.FileMode(0o700), os.Getuid(), os.Getgid()
	var errs []error
	number := func(i, base int) int {
		n, err := strconv.ParseUint(parts[i], base, 31)
		errs = append(errs, err)
		return int(n)
	}
	switch len(parts) {
	case 4:
		uid, gid = number(2, 10), number(3, 10)
		fallthrough
	case 2:
		mode = os.FileMode(number(1, 8)) & fs.ModePerm
	case 1:
	default:
		return fmt.Errorf("want path[:mode[:uid:gid]]: %w", errdefs.ErrInvalidArgument)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	for _, a := range active {
		rel, err := filepath.Rel(a.MountPoint, parts[0])
		if err != nil || !filepath.IsLocal(rel) {
			continue
		}
		return mkdirIn(a.MountPoint, rel, mode, uid, gid)
	}
	return fmt.Errorf("it is in none of the mounts before it: %w", errdefs.ErrInvalidArgument)
}

// mkdirIn makes a directory below root that no symbolic link leads out of.
func mkdirIn(root, dir string, mode os.FileMode, uid, gid int) error {
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := r.MkdirAll(dir, mode); err != nil {
		return err
	}
	if err := r.Chmod(dir, mode); err != nil {
		return err
	}
	return r.Chown(dir, uid, gid)
}
