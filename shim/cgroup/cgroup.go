// Package cgroup puts a sandbox's machine into the control group of the host
// that its container engine has named for it, so that the host accounts for it
// there and the limits of the groups above, a pod's for one, hold for it.
//
// The group itself gets no limits: those of a container hold in the guest, and
// a machine is more than its containers.
//
// On FreeBSD there are no control groups, and all of this does nothing.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// Group is the control group of one machine. The nil Group is none, and all its
// methods succeed.
type Group struct {
	record record
	line   *receipt.Receipt
	*directory
}

// Make makes the group that linux.cgroupsPath of a spec names, in every
// hierarchy, with its receipt in book. It returns nil for an empty path and on a
// host without control groups. One that is there already is used, and is not the
// machine's to remove. Make it before the machine, so that what is undone in the
// opposite order finds it empty. errdefs.ErrInvalidArgument for a path that cannot
// be a group's.
func Make(ctx context.Context, book *receipt.Book, cgroupsPath string) (*Group, error) {
	if cgroupsPath == "" || !available() {
		return nil, nil
	}
	p, err := Path(cgroupsPath)
	if err != nil {
		return nil, err
	}
	var r record
	if r.Dirs, err = missing(p); err != nil {
		return nil, fmt.Errorf("control group %s: %w", p, err)
	}
	line, err := book.Write(r)
	if err != nil {
		return nil, err
	}
	d, err := makeDirectory(p)
	if err != nil {
		err = fmt.Errorf("control group %s: %w", p, err)
		if uerr := line.Undo(ctx); uerr != nil {
			err = fmt.Errorf("%w (and %w)", err, uerr)
		}
		return nil, err
	}
	return &Group{r, line, d}, nil
}

// Add moves a process, with all its threads, into the group. Memory that it has
// by then stays with the group that it comes from.
func (g *Group) Add(pid int) error {
	if g == nil {
		return nil
	}
	r := g.record
	r.Pid = pid
	err := g.line.Amend(r)
	if err == nil {
		err = g.add(pid)
	}
	if err != nil {
		return fmt.Errorf("move process %d into its control group: %w", pid, err)
	}
	return nil
}

// Remove removes the group, unless somebody else is in it. The machine must not be.
func (g *Group) Remove(ctx context.Context) error {
	if g == nil {
		return nil
	}
	return g.line.Undo(ctx)
}

// record is the receipt of a group.
type record struct {
	// Dirs are the group's directories in the hierarchies that have not had one
	// before.
	Dirs []string `json:"dirs"`
	// Pid is the machine's, 0 before it is in the group.
	Pid int `json:"pid,omitempty"`
}

func init() {
	receipt.Register(record{}.Kind(), func() receipt.Resource { return new(record) })
}

// Kind implements receipt.Resource.
func (record) Kind() string { return "cgroup" }

const (
	// emptyWait is how long a group may take to be empty: a killed process with
	// many threads and much memory is a zombie first and leaves its group with
	// its last thread.
	emptyWait = 2 * time.Second
	emptyPoll = 20 * time.Millisecond
)

// Undo removes the group where it was made. One that somebody else has come to
// use stays, it is his by now. The groups above stay: they are others' as well.
func (r record) Undo(ctx context.Context) error {
	waiting, cancel := context.WithTimeout(ctx, emptyWait)
	defer cancel()
	tick := time.NewTicker(emptyPoll)
	defer tick.Stop()
	for {
		err := r.remove()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-waiting.Done():
			if ctx.Err() == nil && r.taken() {
				log.G(ctx).WithError(err).Warn("the machine's control group is left to others, who are in it")
				return nil
			}
			return fmt.Errorf("remove control group: %w", err)
		}
	}
}

func (r record) remove() error {
	var errs []error
	for _, dir := range r.Dirs {
		// Not what others have made below it.
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// taken says whether there is a process in the group that is not the machine's,
// or a group.
func (r record) taken() bool {
	for _, dir := range r.Dirs {
		entries, _ := os.ReadDir(dir)
		procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for pid := range strings.FieldsSeq(string(procs)) {
			if pid != strconv.Itoa(r.Pid) {
				return true
			}
		}
		if slices.ContainsFunc(entries, fs.DirEntry.IsDir) {
			return true
		}
	}
	return false
}

// Path is the absolute path in a hierarchy of what linux.cgroupsPath names. The
// form for systemd, slice:prefix:name, becomes the path at which systemd would
// put the scope (systemd.slice(5)); systemd is not asked.
func Path(cgroupsPath string) (string, error) {
	bad := func() (string, error) {
		return "", fmt.Errorf("linux.cgroupsPath %q: %w", cgroupsPath, errdefs.ErrInvalidArgument)
	}
	p := cgroupsPath
	if parts := strings.Split(p, ":"); len(parts) == 3 {
		slice, name := parts[0], parts[2]
		if slice == "" {
			slice = "system.slice"
		}
		dir, ok := slicePath(slice)
		if !ok || name == "" || strings.Contains(parts[1]+name, "/") {
			return bad()
		}
		if !strings.HasSuffix(name, ".slice") {
			if parts[1] != "" {
				name = parts[1] + "-" + name
			}
			name += ".scope"
		}
		p = path.Join(dir, name)
	}
	for _, element := range strings.Split(p, "/") {
		if element == ".." {
			return bad()
		}
	}
	p = path.Join("/", p)
	if p == "/" {
		return bad()
	}
	return p, nil
}

// slicePath is where a slice is: each dash of its name is a level.
func slicePath(slice string) (string, bool) {
	name, ok := strings.CutSuffix(slice, ".slice")
	switch {
	case !ok || strings.Contains(name, "/"):
		return "", false
	case name == "-":
		return "/", true
	}
	p, prefix := "/", ""
	for _, part := range strings.Split(name, "-") {
		if part == "" {
			return "", false
		}
		p = path.Join(p, prefix+part+".slice")
		prefix += part + "-"
	}
	return p, true
}
