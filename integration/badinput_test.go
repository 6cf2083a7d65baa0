//go:build linux || freebsd

package integration

import (
	"context"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// refusalTime bounds an error that needs no machine, or none that comes up.
var refusalTime = lab.Patience(20 * time.Second)

func testForeignProgram(r *rig) {
	result := r.ctr("run", "--rm", "--runtime", r.runtime, lab.ForeignImage, r.newID(), "/hello")
	want := "EM_AARCH64"
	if r.reference() {
		want = "exec format error"
	}
	if result.Code == 0 || !strings.Contains(result.Stderr, want) {
		r.Errorf("want %s on standard error from\n%s", want, result)
	}
}

// testMalformedConfig sends what containerd passes on. See TestShim for what it
// refuses itself.
func testMalformedConfig(r *rig) {
	for name, config := range map[string]string{
		"null":       `null`,
		"no process": `{"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "linux": {}}`,
		"no args":    `{"ociVersion": "1.0.2", "process": {"cwd": "/"}, "root": {"path": "rootfs"}, "linux": {}}`,
	} {
		err := r.createTask(func(c *containers.Container) { c.Spec = &anypb.Any{TypeUrl: specType, Value: []byte(config)} })
		r.wantRefusal(name, err)
	}
}

func testUnknownOptions(r *rig) {
	err := r.createTask(func(c *containers.Container) {
		c.Runtime.Options = &anypb.Any{TypeUrl: "example.com/NoSuchOptions", Value: []byte("x")}
	})
	r.wantRefusal("unknown options", err)
}

// specType is the type URL of a runtime spec (containerd's oci package).
const specType = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

func (r *rig) wantRefusal(name string, err error) {
	r.Helper()
	switch {
	case err == nil:
		r.Errorf("%s: accepted", name)
	case errdefs.IsDeadlineExceeded(err):
		r.Errorf("%s: not refused within %v: %v", name, refusalTime, err)
	// runc's errors have no kind.
	case !r.reference() && !errdefs.IsInvalidArgument(err):
		r.Errorf("%s: not an invalid argument: %v", name, err)
	}
}

// createTask makes a container as a client would, has it changed, and creates
// its task by the service itself: containerd's client refuses some of what a
// shim has to be able to refuse.
func (r *rig) createTask(change func(*containers.Container)) error {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, refusalTime)
	defer cancel()
	img, err := r.Client.GetImage(ctx, lab.Image)
	if err != nil {
		r.Fatal(err)
	}
	id := r.newID()
	c, err := r.Client.NewContainer(ctx, id,
		containerd.WithRuntime(r.runtime, nil),
		containerd.WithNewSnapshot(id, img),
		containerd.WithNewSpec(oci.WithImageConfig(img)),
		func(_ context.Context, _ *containerd.Client, c *containers.Container) error {
			change(c)
			return nil
		})
	if err != nil {
		r.Fatal(err)
	}
	defer func() {
		if err := c.Delete(context.WithoutCancel(ctx), containerd.WithSnapshotCleanup); err != nil {
			r.Error(err)
		}
	}()
	_, err = r.Client.TaskService().Create(ctx, &tasks.CreateTaskRequest{ContainerID: id})
	if err == nil {
		r.removeContainer(id)
	}
	return errgrpc.ToNative(err)
}
