package bundle

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
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
