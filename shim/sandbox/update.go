package sandbox

import (
	"context"
	"fmt"
	"strings"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/bundle"
)

// Update changes the container's limits in the guest. resources are an OCI
// spec's, in JSON. What the guest cannot change, and what is more than the
// machine has, is an error that names it (bundle.TranslateUpdate); so are
// annotations of this runtime's, which make machines and do not change them.
func (c *Container) Update(ctx context.Context, resources typeurl.Any, annotations map[string]string) error {
	for key := range annotations {
		if strings.HasPrefix(key, bundle.AnnotationPrefix) {
			return fmt.Errorf("update %s: annotation %q cannot be changed: %w", c.ID, key, errdefs.ErrInvalidArgument)
		}
	}
	guest, err := bundle.TranslateUpdate(c.resources, resources, c.vm.room)
	if err != nil {
		return fmt.Errorf("update %s: %w", c.ID, err)
	}
	return c.call(ctx, "update", func(ctx context.Context) error {
		_, err := c.vm.agent.task.Update(ctx, &taskapi.UpdateTaskRequest{ID: c.guestID, Resources: guest})
		return err
	})
}
