package sizing

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/bundle"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
)

var host = Host{CPUs: 8, MemoryMiB: 16 << 10}

// machine is the default, without rounding.
func machine(change func(*config.Machine)) config.Machine {
	m := config.Default().Machine
	m.Annotations, m.MemoryStepMiB = config.AnnotationNames, 0
	if change != nil {
		change(&m)
	}
	return m
}

func TestFor(t *testing.T) {
	annotated := func(kv ...string) map[string]string {
		m := map[string]string{"org.example": "x"}
		for i := 0; i < len(kv); i += 2 {
			m[bundle.AnnotationPrefix+kv[i]] = kv[i+1]
		}
		return m
	}
	for name, tc := range map[string]struct {
		r      Request
		change func(*config.Machine)
		want   config.Size
	}{
		"nothing known":             {Request{}, nil, config.Size{VCPUs: 1, MemoryMiB: 256}},
		"no bounds":                 {Request{CPUQuota: -1, MemoryBytes: -1}, nil, config.Size{VCPUs: 1, MemoryMiB: 256}},
		"a part of a processor":     {Request{CPUQuota: 1000}, nil, config.Size{VCPUs: 1, MemoryMiB: 256}},
		"one processor and a half":  {Request{CPUQuota: 150_000, CPUPeriod: 100_000}, nil, config.Size{VCPUs: 2, MemoryMiB: 256}},
		"another period":            {Request{CPUQuota: 150_000, CPUPeriod: 50_000}, nil, config.Size{VCPUs: 3, MemoryMiB: 256}},
		"processors over the host":  {Request{CPUQuota: 1 << 62, CPUPeriod: 1}, nil, config.Size{VCPUs: 8, MemoryMiB: 256}},
		"processors over the most":  {Request{CPUQuota: 900_000}, func(m *config.Machine) { m.MaxVCPUs = 2 }, config.Size{VCPUs: 2, MemoryMiB: 256}},
		"a limit below the default": {Request{MemoryBytes: 64 * mib}, nil, config.Size{VCPUs: 1, MemoryMiB: 167}},
		"a limit, not in MiB":       {Request{MemoryBytes: 64*mib - 1}, nil, config.Size{VCPUs: 1, MemoryMiB: 167}},
		"a limit above it":          {Request{MemoryBytes: 1024 * mib}, nil, config.Size{VCPUs: 1, MemoryMiB: 1142}},
		"a limit in steps":          {Request{MemoryBytes: 64 * mib}, func(m *config.Machine) { m.MemoryStepMiB = 128 }, config.Size{VCPUs: 1, MemoryMiB: 256}},
		"next to nothing":           {Request{MemoryBytes: 1}, func(m *config.Machine) { m.OverheadMiB = 0 }, config.Size{VCPUs: 1, MemoryMiB: 128}},
		"memory over the host":      {Request{MemoryBytes: 1<<63 - 4096}, nil, config.Size{VCPUs: 1, MemoryMiB: 16 << 10}},
		"memory over the most":      {Request{MemoryBytes: 1024 * mib}, func(m *config.Machine) { m.MaxMemoryMiB = 512 }, config.Size{VCPUs: 1, MemoryMiB: 512}},
		"a default over the most":   {Request{}, func(m *config.Machine) { m.VCPUs, m.MaxVCPUs = 4, 2 }, config.Size{VCPUs: 2, MemoryMiB: 256}},
		"annotations":               {Request{CPUQuota: 100_000, MemoryBytes: 1 << 30, Annotations: annotated("vcpus", "3", "memory-mib", "300")}, nil, config.Size{VCPUs: 3, MemoryMiB: 300}},
		"options":                   {Request{MemoryBytes: 1 << 30}, func(m *config.Machine) { m.Exact = config.Size{VCPUs: 2, MemoryMiB: 300} }, config.Size{VCPUs: 2, MemoryMiB: 300}},
		"annotations over options":  {Request{Annotations: annotated("vcpus", "3")}, func(m *config.Machine) { m.Exact = config.Size{VCPUs: 2} }, config.Size{VCPUs: 3, MemoryMiB: 256}},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := For(tc.r, machine(tc.change), host)
			if err != nil || m.Size() != tc.want {
				t.Errorf("got %+v, %v; want %+v", m.Size(), err, tc.want)
			}
		})
	}
	t.Run("kernel arguments", func(t *testing.T) {
		given := machine(func(m *config.Machine) { m.KernelArgs = append(make([]string, 0, 8), "quiet") })
		m, err := For(Request{Annotations: annotated("kernel-args", " debug  panic=1")}, given, host)
		if err != nil || !slices.Equal(m.KernelArgs, []string{"quiet", "debug", "panic=1"}) {
			t.Errorf("got %q, %v", m.KernelArgs, err)
		}
		if len(given.KernelArgs) != 1 || given.KernelArgs[:2][1] != "" {
			t.Error("the caller's own list was changed")
		}
	})
	for name, tc := range map[string]struct {
		r      Request
		change func(*config.Machine)
		kind   func(error) bool
		named  string
	}{
		"no number":        {Request{Annotations: annotated("vcpus", "two")}, nil, errdefs.IsInvalidArgument, "bhyve.vcpus"},
		"none":             {Request{Annotations: annotated("vcpus", "0")}, nil, errdefs.IsInvalidArgument, "bhyve.vcpus"},
		"empty":            {Request{Annotations: annotated("memory-mib", "")}, nil, errdefs.IsInvalidArgument, "bhyve.memory-mib"},
		"too little":       {Request{Annotations: annotated("memory-mib", "127")}, nil, errdefs.IsInvalidArgument, "bhyve.memory-mib"},
		"too much":         {Request{Annotations: annotated("memory-mib", "999999")}, nil, errdefs.IsInvalidArgument, "bhyve.memory-mib"},
		"too many":         {Request{Annotations: annotated("vcpus", "9")}, nil, errdefs.IsInvalidArgument, "bhyve.vcpus"},
		"too many options": {Request{}, func(m *config.Machine) { m.Exact.VCPUs = 9 }, errdefs.IsInvalidArgument, "runtime option vcpus"},
		"not enabled": {Request{Annotations: annotated("kernel-args", "x")}, func(m *config.Machine) { m.Annotations = []string{"vcpus"} },
			errdefs.IsPermissionDenied, "bhyve.kernel-args"},
	} {
		t.Run("refused: "+name, func(t *testing.T) {
			if _, err := For(tc.r, machine(tc.change), host); !tc.kind(err) || !strings.Contains(err.Error(), tc.named) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A container can reach the limit that its machine was made for.
func TestRoomIsForTheLimit(t *testing.T) {
	for limit := int64(1); limit < 4096; limit += 7 {
		m, err := For(Request{MemoryBytes: limit * mib, CPUQuota: 200_000}, machine(nil), host)
		if err != nil {
			t.Fatal(err)
		}
		if room := Room(m); int64(room.MemoryMiB) < limit || room.VCPUs != 2 {
			t.Fatalf("a machine of %d MiB for %d has room for %+v", m.MemoryMiB, limit, room)
		}
	}
	if room := Room(machine(func(m *config.Machine) { m.MemoryMiB = 50 })); room.MemoryMiB != 0 {
		t.Errorf("a machine smaller than its overhead has room for %d MiB", room.MemoryMiB)
	}
}

func TestFromSpec(t *testing.T) {
	limits := &specs.Linux{Resources: &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: new(int64(7))},
		CPU:    &specs.LinuxCPU{Quota: new(int64(8)), Period: new(uint64(9))},
	}}
	pod := func(kv ...string) map[string]string {
		m := map[string]string{"io.kubernetes.cri.sandbox-id": "pod"}
		for i := 0; i < len(kv); i += 2 {
			m["io.kubernetes.cri.sandbox-"+kv[i]] = kv[i+1]
		}
		return m
	}
	for name, tc := range map[string]struct {
		spec specs.Spec
		want Request
	}{
		"empty":             {specs.Spec{}, Request{}},
		"no resources":      {specs.Spec{Linux: &specs.Linux{}}, Request{}},
		"no limits":         {specs.Spec{Linux: &specs.Linux{Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{}, CPU: &specs.LinuxCPU{}}}}, Request{}},
		"a lone container":  {specs.Spec{Linux: limits}, Request{MemoryBytes: 7, CPUQuota: 8, CPUPeriod: 9}},
		"a pod":             {specs.Spec{Linux: limits, Annotations: pod("memory", "1", "cpu-quota", "2", "cpu-period", "3")}, Request{MemoryBytes: 1, CPUQuota: 2, CPUPeriod: 3}},
		"a pod that is not": {specs.Spec{Linux: limits, Annotations: pod()}, Request{}},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := FromSpec(&tc.spec)
			r.Annotations = nil
			if err != nil || r.MemoryBytes != tc.want.MemoryBytes || r.CPUQuota != tc.want.CPUQuota || r.CPUPeriod != tc.want.CPUPeriod {
				t.Errorf("got %+v, %v; want %+v", r, err, tc.want)
			}
		})
	}
	_, err := FromSpec(&specs.Spec{Annotations: pod("memory", "lots")})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "sandbox-memory") {
		t.Errorf("got %v", err)
	}
}

func TestThisHost(t *testing.T) {
	if h, err := ThisHost(); err != nil || h.CPUs < 1 || h.MemoryMiB < 128 {
		t.Errorf("got %+v, %v", h, err)
	}
}

// The names that a configuration may enable are those that mean something.
func TestAnnotationNames(t *testing.T) {
	var all []string
	for _, name := range config.AnnotationNames {
		all = append(all, bundle.AnnotationPrefix+name)
	}
	if !slices.Equal(all, bundle.MachineAnnotations) {
		t.Errorf("the configuration knows %q, bundles %q", all, bundle.MachineAnnotations)
	}
}
