package bundle

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// AnnotationPrefix starts every annotation that belongs to this runtime.
const AnnotationPrefix = "io.containerd.bhyve."

// annotations is the allow-list. There is none yet that a container may set.
var annotations = []string{}

// checkAnnotations refuses annotations of ours that do not exist: a misspelt
// one must not pass for one that took effect.
func checkAnnotations(t *translation) error {
	for key := range t.spec.Annotations {
		if strings.HasPrefix(key, AnnotationPrefix) && !slices.Contains(annotations, key) {
			return fmt.Errorf("unknown annotation %q: %w", key, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// The annotations of containerd's CRI plugin that say what a container is to
// its pod (internal/cri/annotations in containerd).
const (
	annotationContainerType = "io.kubernetes.cri.container-type"
	annotationSandboxID     = "io.kubernetes.cri.sandbox-id"

	containerTypeSandbox = "sandbox"
)

// SandboxID is the id of the pod that the annotations of a spec put its
// container into, empty for a container of its own.
func SandboxID(spec *specs.Spec) string { return spec.Annotations[annotationSandboxID] }
