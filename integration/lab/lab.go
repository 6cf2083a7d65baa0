package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// The runtimes of a lab.
const (
	// RuntimeBhyve is this repository's.
	RuntimeBhyve = "io.containerd.bhyve.v2"
	// RuntimeRunc is the one that it is measured against.
	RuntimeRunc = "io.containerd.runc.v2"
)

// CRINamespace is the containerd namespace that CRI's containers are in.
const CRINamespace = "k8s.io"

// Images that every lab has.
const (
	// Image is busybox, the probe program, and a few files with modes that a
	// file system is likely to lose. See package image.
	Image = "lab.local/busybox:latest"
	// ForeignImage claims this machine's architecture and holds one program of
	// another.
	ForeignImage = "lab.local/foreign:latest"
)

// callTimeout bounds the lab's own calls to containerd.
var callTimeout = Patience(time.Minute)

// Lab is a containerd in the world that Enter made. It is safe for concurrent
// use, except that restarting containerd is one caller's business at a time.
type Lab struct {
	// Dir is the lab's directory on disk. It goes with the world.
	Dir string
	// Namespace is the containerd namespace that everything is in.
	Namespace string
	// Client is connected to the containerd, and stays so when it restarts.
	Client *containerd.Client

	repo     string
	daemon   *daemon
	registry *imageServer
	clean    Snapshot
}

// Start brings up containerd and imports the images. It may be called once in
// a world; ctx bounds the start only.
func Start(ctx context.Context) (_ *Lab, err error) {
	if world.dir == "" {
		return nil, errors.New("not in a world of its own: call Enter first")
	}
	repo, err := Repo()
	if err != nil {
		return nil, err
	}
	if err := checkArtifacts(repo); err != nil {
		return nil, err
	}
	l := &Lab{Dir: world.dir, Namespace: filepath.Base(world.dir), repo: repo}
	// Directories that containerd, ctr and runc make at first use and keep.
	for _, dir := range []string{l.TempDir(), inState("fifo"), inState("s"), inState("runc")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, err
		}
	}
	if err := l.WriteShimConfig(l.shimConfigPath(), ShimConfig{}); err != nil {
		return nil, err
	}
	if err := l.furnishCRI(); err != nil {
		return nil, fmt.Errorf("prepare for CRI: %w", err)
	}
	if l.daemon, err = newDaemon(l); err != nil {
		return nil, err
	}
	defer func() {
		// Where the world does not end with this process.
		if err != nil && l.daemon.cmd != nil {
			err = errors.Join(err, l.daemon.stop(context.WithoutCancel(ctx)))
		}
	}()
	if err := l.StartContainerd(ctx); err != nil {
		return nil, err
	}
	if err := l.importImages(ctx); err != nil {
		return nil, err
	}
	l.clean, err = l.Snapshot()
	return l, err
}

// inState is a path in containerd's directory for state.
func inState(name string) string { return filepath.Join(defaults.DefaultStateDir, name) }

// Context returns ctx with the lab's containerd namespace in it, as calls of
// Client need it.
func (l *Lab) Context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, l.Namespace)
}

// TempDir is TMPDIR of everything that runs in the lab. A test that ends has
// to have emptied it.
func (l *Lab) TempDir() string { return filepath.Join(l.Dir, "tmp") }

// SnapshotsDir is where containerd's snapshotter of this name keeps what it has.
func (l *Lab) SnapshotsDir(name string) string {
	return filepath.Join(l.Dir, "containerd", "io.containerd.snapshotter.v1."+name)
}

// Probe is the probe program on this side, as it is in the image.
func (l *Lab) Probe() string { return filepath.Join(l.repo, artifacts.probe) }

// Close stops containerd. What else runs ends with the world.
func (l *Lab) Close(ctx context.Context) error {
	return errors.Join(l.Client.Close(), l.daemon.stop(ctx))
}

func (l *Lab) importImages(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(l.Context(ctx), callTimeout)
	defer cancel()
	archives, err := l.archives()
	if err != nil {
		return err
	}
	for name, archive := range archives {
		if _, err := l.Client.Import(ctx, archive); err != nil {
			return fmt.Errorf("import image %s: %w", name, err)
		}
		got, err := l.Client.GetImage(ctx, name)
		if err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
		if err := got.Unpack(ctx, snapshotter); err != nil {
			return fmt.Errorf("unpack image %s: %w", name, err)
		}
	}
	return nil
}
