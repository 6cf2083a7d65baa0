// Package sizing decides how large a sandbox's machine is: from what its
// containers may use, what the administrator allows, and what a machine needs
// for itself.
package sizing

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/bundle"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
)

// Request is what is known of a sandbox before its machine is made.
type Request struct {
	// CPUQuota and CPUPeriod bound the sandbox's processor time, in
	// microseconds. A quota that is not positive is no bound, a period that is
	// not positive is the kernel's.
	CPUQuota, CPUPeriod int64
	// MemoryBytes bounds the memory of the sandbox's containers together. Not
	// positive is no bound.
	MemoryBytes int64
	// Annotations are the sandbox's own. Those that are not this runtime's mean
	// nothing here.
	Annotations map[string]string
}

// Annotations of containerd's CRI plugin, on the pod's first container: the sums
// of the limits of the pod's containers (internal/cri/annotations).
const (
	criCPUQuota  = "io.kubernetes.cri.sandbox-cpu-quota"
	criCPUPeriod = "io.kubernetes.cri.sandbox-cpu-period"
	criMemory    = "io.kubernetes.cri.sandbox-memory"
)

// defaultCPUPeriod is the kernel's, in microseconds (cgroup-v2.rst, cpu.max).
const defaultCPUPeriod = 100_000

const mib = 1 << 20

// FromSpec is the request of a sandbox whose first container has this spec: by
// the pod's annotations if it belongs to one, by its own limits otherwise.
func FromSpec(spec *specs.Spec) (Request, error) {
	r := Request{Annotations: spec.Annotations}
	if bundle.SandboxID(spec) != "" {
		for key, field := range map[string]*int64{criCPUQuota: &r.CPUQuota, criCPUPeriod: &r.CPUPeriod, criMemory: &r.MemoryBytes} {
			text, ok := spec.Annotations[key]
			if !ok {
				continue
			}
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return Request{}, fmt.Errorf("annotation %s=%q is not a number: %w", key, text, errdefs.ErrInvalidArgument)
			}
			*field = n
		}
		return r, nil
	}
	if spec.Linux == nil || spec.Linux.Resources == nil {
		return r, nil
	}
	if m := spec.Linux.Resources.Memory; m != nil && m.Limit != nil {
		r.MemoryBytes = *m.Limit
	}
	if c := spec.Linux.Resources.CPU; c != nil {
		if c.Quota != nil {
			r.CPUQuota = *c.Quota
		}
		if c.Period != nil {
			r.CPUPeriod = int64(min(*c.Period, 1<<62))
		}
	}
	return r, nil
}

// For returns m with the size, and the kernel arguments, of the machine that r
// asks for on this host. What r bounds becomes a machine in which the bound can
// be reached, and what it does not is m's default; both end at the administrator's
// maximum, as a bound promises nothing. A size that an annotation or the runtime
// options name is taken as it is, or refused.
//
// Errors: errdefs.ErrInvalidArgument for a value that is none or too much,
// errdefs.ErrPermissionDenied for an annotation that the configuration does not
// enable. They name the annotation. Unknown annotations are package bundle's to
// refuse.
func For(r Request, m config.Machine, host Host) (config.Machine, error) {
	maxCPUs, maxMiB := m.MaxVCPUs, m.MaxMemoryMiB
	if maxCPUs == 0 {
		maxCPUs = host.CPUs
	}
	if maxMiB == 0 {
		maxMiB = host.MemoryMiB
	}
	if r.CPUQuota > 0 {
		m.VCPUs = ceilCPUs(r.CPUQuota, r.CPUPeriod, maxCPUs)
	}
	if r.MemoryBytes > 0 {
		m.MemoryMiB = withOverhead(r.MemoryBytes, m, maxMiB)
	}
	m.VCPUs, m.MemoryMiB = min(m.VCPUs, maxCPUs), min(m.MemoryMiB, maxMiB)
	for _, exact := range []struct {
		name           string
		value          int
		low, high      int
		field          *int
		fromAnnotation string
	}{
		{"vcpus", m.Exact.VCPUs, 1, maxCPUs, &m.VCPUs, bundle.AnnotationVCPUs},
		{"memory_mib", m.Exact.MemoryMiB, hypervisor.MinMemoryMiB, maxMiB, &m.MemoryMiB, bundle.AnnotationMemoryMiB},
	} {
		name, value := "runtime option "+exact.name, exact.value
		if text, ok := r.Annotations[exact.fromAnnotation]; ok {
			name = "annotation " + exact.fromAnnotation
			n, err := strconv.Atoi(text)
			if err != nil {
				return m, fmt.Errorf("%s=%q is not a number: %w", name, text, errdefs.ErrInvalidArgument)
			}
			value = n
		} else if value == 0 {
			continue
		}
		if value < exact.low || value > exact.high {
			return m, fmt.Errorf("%s=%d: want %d to %d: %w", name, value, exact.low, exact.high, errdefs.ErrInvalidArgument)
		}
		*exact.field = value
	}
	if args, ok := r.Annotations[bundle.AnnotationKernelArgs]; ok {
		m.KernelArgs = append(slices.Clone(m.KernelArgs), strings.Fields(args)...)
	}
	return m, checkEnabled(r.Annotations, m.Annotations)
}

// checkEnabled refuses annotations for machines that the administrator has not
// enabled, by the ends of their names.
func checkEnabled(annotations map[string]string, enabled []string) error {
	for key := range annotations {
		name, ours := strings.CutPrefix(key, bundle.AnnotationPrefix)
		if ours && slices.Contains(bundle.MachineAnnotations, key) && !slices.Contains(enabled, name) {
			return fmt.Errorf("annotation %s is not enabled (machine.annotations of the configuration): %w", key, errdefs.ErrPermissionDenied)
		}
	}
	return nil
}

// ceilCPUs is how many processors a quota keeps busy.
func ceilCPUs(quota, period int64, most int) int {
	if period <= 0 {
		period = defaultCPUPeriod
	}
	n := quota / period
	if quota%period != 0 {
		n++
	}
	return int(min(n, int64(most)))
}

// pageMap is the part of its memory that a guest's kernel spends on describing
// it: a struct page of 64 bytes for each 4096 (include/linux/mm_types.h).
const pageMap = 64

// withOverhead is the memory of a machine whose containers can use limit bytes,
// in MiB and at most most. It is a whole number of steps: a pool can have
// machines ready of some sizes only.
func withOverhead(limit int64, m config.Machine, most int) int {
	limitMiB := limit / mib
	if limit%mib != 0 {
		limitMiB++
	}
	if limitMiB >= int64(most) {
		return most
	}
	need := limitMiB + int64(m.OverheadMiB)
	total := (need*pageMap + pageMap - 2) / (pageMap - 1)
	total = max(total, hypervisor.MinMemoryMiB)
	if step := int64(m.MemoryStepMiB); step > 0 {
		total = (total + step - 1) / step * step
	}
	return int(min(total, int64(most)))
}

// Room is what the containers of a machine of this size can use together.
func Room(m config.Machine) bundle.Room {
	return bundle.Room{VCPUs: m.VCPUs, MemoryMiB: max(0, m.MemoryMiB-m.MemoryMiB/pageMap-m.OverheadMiB)}
}
