package bundle

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

func resources(text string) typeurl.Any {
	return &anypb.Any{TypeUrl: resourcesType, Value: []byte(text)}
}

func TestTranslateUpdate(t *testing.T) {
	room := Room{VCPUs: 2, MemoryMiB: 256}
	created := &specs.LinuxResources{
		CPU:     &specs.LinuxCPU{Cpus: "0-3", Quota: new(int64(900_000)), Period: new(uint64(100_000))},
		Memory:  &specs.LinuxMemory{Limit: new(int64(1 << 40))},
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
	}
	for name, tc := range map[string]struct {
		in, want string
	}{
		"memory":                {`{"memory":{"limit":268435456,"swap":268435456}}`, `{"memory":{"limit":268435456,"swap":268435456}}`},
		"no limit":              {`{"memory":{"limit":-1}}`, `{"memory":{"limit":-1}}`},
		"cpu":                   {`{"cpu":{"shares":512,"quota":200000,"period":100000}}`, `{"cpu":{"shares":512,"quota":200000,"period":100000}}`},
		"cpu, default period":   {`{"cpu":{"quota":200000}}`, `{"cpu":{"quota":200000}}`},
		"no quota":              {`{"cpu":{"quota":-1}}`, `{"cpu":{"quota":-1}}`},
		"pids and unified":      {`{"pids":{"limit":10},"unified":{"memory.high":"1"}}`, `{"pids":{"limit":10},"unified":{"memory.high":"1"}}`},
		"nothing":               {`{}`, `{}`},
		"the same again":        {`{"cpu":{"cpus":"0-3","shares":2},"devices":[{"allow":false,"access":"rwm"}]}`, `{"cpu":{"shares":2}}`},
		"limits of creation":    {`{"memory":{"limit":1099511627776},"cpu":{"quota":900000,"period":100000}}`, `{"memory":{"limit":1099511627776},"cpu":{"quota":900000,"period":100000}}`},
		"empty lists":           {`{"devices":[],"hugepageLimits":[],"rdma":{}}`, `{}`},
		"a field from tomorrow": {`{"memory":{"tomorrow":1}}`, `{"memory":{}}`},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := TranslateUpdate(created, resources(tc.in), room)
			if err != nil {
				t.Fatal(err)
			}
			if string(out.Value) != tc.want || out.TypeUrl != resourcesType {
				t.Errorf("got %s of %s, want %s", out.Value, out.TypeUrl, tc.want)
			}
		})
	}
	for name, tc := range map[string]struct {
		in    typeurl.Any
		kind  func(error) bool
		named string
	}{
		"none":           {nil, errdefs.IsInvalidArgument, "resources"},
		"empty":          {&anypb.Any{}, errdefs.IsInvalidArgument, "resources"},
		"another type":   {&anypb.Any{TypeUrl: "windows", Value: []byte("{}")}, errdefs.IsInvalidArgument, "windows"},
		"malformed":      {resources(`{"memory":`), errdefs.IsInvalidArgument, "resources"},
		"memory":         {resources(`{"memory":{"limit":268435457}}`), errdefs.IsOutOfRange, "memory.limit"},
		"reservation":    {resources(`{"memory":{"reservation":268435457}}`), errdefs.IsOutOfRange, "memory.reservation"},
		"quota":          {resources(`{"cpu":{"quota":200001}}`), errdefs.IsOutOfRange, "cpu.quota"},
		"quota, period":  {resources(`{"cpu":{"quota":100001,"period":50000}}`), errdefs.IsOutOfRange, "cpu.quota"},
		"cpus":           {resources(`{"cpu":{"cpus":"1"}}`), errdefs.IsNotImplemented, "cpu.cpus"},
		"mems":           {resources(`{"cpu":{"mems":"0"}}`), errdefs.IsNotImplemented, "cpu.mems"},
		"burst":          {resources(`{"cpu":{"burst":1}}`), errdefs.IsNotImplemented, "cpu.burst"},
		"real time":      {resources(`{"cpu":{"realtimeRuntime":1}}`), errdefs.IsNotImplemented, "cpu.realtimeRuntime"},
		"devices":        {resources(`{"devices":[{"allow":true,"access":"rwm"}]}`), errdefs.IsNotImplemented, "devices"},
		"block devices":  {resources(`{"blockIO":{"weight":10}}`), errdefs.IsNotImplemented, "blockIO"},
		"huge pages":     {resources(`{"hugepageLimits":[{"pageSize":"2MB","limit":1}]}`), errdefs.IsNotImplemented, "hugepageLimits"},
		"network":        {resources(`{"network":{"classID":1}}`), errdefs.IsNotImplemented, "network"},
		"rdma":           {resources(`{"rdma":{"mlx":{"hcaHandles":1}}}`), errdefs.IsNotImplemented, "rdma"},
		"a path upwards": {resources(`{"unified":{"../cgroup.procs":"1"}}`), errdefs.IsInvalidArgument, "../cgroup.procs"},
	} {
		t.Run("refused: "+name, func(t *testing.T) {
			out, err := TranslateUpdate(created, tc.in, room)
			if !tc.kind(err) || !strings.Contains(err.Error(), tc.named) {
				t.Errorf("got %v, %v", out, err)
			}
		})
	}
}

func TestResourcesAreACopy(t *testing.T) {
	spec := minimal()
	if r, err := Resources(&specs.Spec{}); r == nil || err != nil {
		t.Errorf("of no spec: %v, %v", r, err)
	}
	spec.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0"}}
	r, err := Resources(spec)
	if err != nil {
		t.Fatal(err)
	}
	translate(t, spec)
	if spec.Linux.Resources.CPU.Cpus != "" || r.CPU.Cpus != "0" {
		t.Errorf("translated to %q, copied as %q", spec.Linux.Resources.CPU.Cpus, r.CPU.Cpus)
	}
}
