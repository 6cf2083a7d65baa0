package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// poolEnv names a ZFS pool that the tests may make a dataset in.
const poolEnv = "BHYVE_TEST_ZPOOL"

// TestZFS is about root file systems that are clones. The dataset has to be there
// when containerd starts.
func TestZFS(t *testing.T) {
	pool := os.Getenv(poolEnv)
	if pool == "" {
		t.Skipf("no pool in $%s", poolEnv)
	}
	r := newRig(t, lab.RuntimeBhyve)
	dataset := pool + "/csb-test"
	if out, err := zfs(r.ctx, "list", "-H", "-o", "name", dataset); err == nil {
		// Of a run that was killed.
		r.zfs("destroy", "-R", "-f", strings.TrimSpace(out))
	}
	restart := func(between func()) {
		r.Helper()
		if err := r.StopContainerd(r.ctx); err != nil {
			r.Fatal(err)
		}
		between()
		if err := r.StartContainerd(context.WithoutCancel(r.ctx)); err != nil {
			r.Fatal(err)
		}
	}
	restart(func() { r.zfs("create", "-o", "mountpoint="+r.SnapshotsDir("zfs"), dataset) })
	r.Cleanup(func() {
		r.ctx = context.WithoutCancel(r.ctx)
		restart(func() { r.zfs("destroy", "-R", "-f", dataset) })
	})
	// What is reported once is not reported again, and this is the test's own.
	if err := r.Leaks(r.ctx); err == nil {
		r.Error("the dataset is not mounted")
	}
	img, err := r.Client.GetImage(r.ctx, lab.Image)
	if err != nil {
		r.Fatal(err)
	}
	if err := img.Unpack(r.ctx, "zfs"); err != nil {
		r.Fatal(err)
	}
	before := r.zfs("list", "-H", "-r", "-o", "name", dataset)

	for _, c := range []struct {
		name string
		run  func(*rig)
	}{
		{"hello", testHello},
		{"file system", testFileSystem},
		{"read-only root", testReadOnlyRoot},
		{"shim killed", testShimKilled},
	} {
		t.Run(c.name, func(t *testing.T) {
			sub := newRig(t, r.runtime)
			sub.snapshotter = "zfs"
			c.run(sub)
		})
	}
	// Snapshots of containers that are gone go when containerd collects garbage,
	// which it does after each removal, some time later.
	r.eventually(commandTimeout, func() error {
		if now := r.zfs("list", "-H", "-r", "-o", "name", dataset); now != before {
			return fmt.Errorf("datasets were\n%sand are\n%s", before, now)
		}
		return nil
	})
}

func (r *rig) zfs(args ...string) string {
	r.Helper()
	out, err := zfs(r.ctx, args...)
	if err != nil {
		r.Fatalf("zfs %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

func zfs(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "zfs", args...).CombinedOutput()
	return string(out), err
}
