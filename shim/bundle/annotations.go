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

// Annotations of a sandbox, that is of a lone container or of a pod, that say how
// its machine is made. The administrator enables each by the end of its name
// (machine.annotations of the configuration). They count where the machine is
// made: on a container that joins a machine they have no effect, as CRI repeats
// those of the pod on each of its containers.
const (
	// AnnotationVCPUs is the number of virtual CPUs.
	AnnotationVCPUs = AnnotationPrefix + "vcpus"
	// AnnotationMemoryMiB is the machine's memory in MiB, all of it.
	AnnotationMemoryMiB = AnnotationPrefix + "memory-mib"
	// AnnotationKernelArgs is appended to the guest kernel's command line.
	AnnotationKernelArgs = AnnotationPrefix + "kernel-args"
	// AnnotationPool is pool.mode of the configuration: auto, require or never.
	AnnotationPool = AnnotationPrefix + "pool"
	// AnnotationNetworkPolicy is network.policy of the configuration: the name of a
	// policy of the default network.
	AnnotationNetworkPolicy = AnnotationPrefix + "network-policy"
	// AnnotationCheckpoint is machine.checkpoint of the configuration: true or
	// false.
	AnnotationCheckpoint = AnnotationPrefix + "checkpoint"
)

// MachineAnnotations are all annotations that say how a machine is made.
var MachineAnnotations = []string{AnnotationVCPUs, AnnotationMemoryMiB, AnnotationKernelArgs, AnnotationPool, AnnotationNetworkPolicy, AnnotationCheckpoint}

// annotations is the allow-list: what may be on a container.
var annotations = slices.Concat(MachineAnnotations)

// checkAnnotations refuses annotations of ours that do not exist: a misspelt
// one must not pass for one that took effect.
func checkAnnotations(t *translation) error { return CheckAnnotations(t.spec.Annotations) }

// CheckAnnotations is for annotations of a sandbox that is no container:
// errdefs.ErrInvalidArgument for one of ours that does not exist.
func CheckAnnotations(all map[string]string) error {
	for key := range all {
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
