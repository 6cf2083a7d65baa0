package bundle

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

// Room is the most that the containers of a machine can use together.
type Room struct {
	VCPUs int
	// MemoryMiB is the machine's memory in MiB, without what its own kernel and
	// agent need.
	MemoryMiB int
}

// resourcesType is containerd's type URL of resources: JSON, as of everything
// that is of the OCI spec.
const resourcesType = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"

// Resources is a copy of the resources that spec asks for, as they are before
// Translate rewrites them. It is never nil.
func Resources(spec *specs.Spec) (*specs.LinuxResources, error) {
	r := &specs.LinuxResources{}
	if spec.Linux == nil || spec.Linux.Resources == nil {
		return r, nil
	}
	data, err := json.Marshal(spec.Linux.Resources)
	if err != nil {
		return nil, fmt.Errorf("resources: %w", err)
	}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("resources: %w", err)
	}
	return r, nil
}

// TranslateUpdate makes the guest's version of the resources of an Update
// request, for a container that was created with those in created, in a machine
// with this room.
//
// What is not set stays as it is. What cannot be changed in a guest may be
// repeated, as CRI does, but not changed: errdefs.ErrNotImplemented. More than
// the machine has is errdefs.ErrOutOfRange, what is malformed
// errdefs.ErrInvalidArgument. Each error names the field.
func TranslateUpdate(created *specs.LinuxResources, update typeurl.Any, room Room) (*anypb.Any, error) {
	if update == nil || len(update.GetValue()) == 0 {
		return nil, fmt.Errorf("update without resources: %w", errdefs.ErrInvalidArgument)
	}
	if t := update.GetTypeUrl(); t != resourcesType {
		return nil, fmt.Errorf("update with %q: want %s: %w", t, resourcesType, errdefs.ErrInvalidArgument)
	}
	var r specs.LinuxResources
	if err := json.Unmarshal(update.GetValue(), &r); err != nil {
		return nil, fmt.Errorf("resources: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := dropRepeated(created, &r); err != nil {
		return nil, err
	}
	if err := checkRoom(created, &r, room); err != nil {
		return nil, err
	}
	value, err := json.Marshal(&r)
	if err != nil {
		return nil, fmt.Errorf("encode resources: %w", err)
	}
	return &anypb.Any{TypeUrl: resourcesType, Value: value}, nil
}

// dropRepeated takes out of r what cannot be changed. It had no effect when the
// container was created (translateCgroup), or is fixed since.
func dropRepeated(created, r *specs.LinuxResources) error {
	was, is := created.CPU, r.CPU
	if was == nil {
		was = &specs.LinuxCPU{}
	}
	if is == nil {
		is = &specs.LinuxCPU{}
	}
	for _, f := range []struct {
		name    string
		was, is any
		drop    func()
	}{
		{"cpu.cpus", was.Cpus, is.Cpus, func() { is.Cpus = "" }},
		{"cpu.mems", was.Mems, is.Mems, func() { is.Mems = "" }},
		{"cpu.burst", was.Burst, is.Burst, func() { is.Burst = nil }},
		{"cpu.realtimeRuntime", was.RealtimeRuntime, is.RealtimeRuntime, func() { is.RealtimeRuntime = nil }},
		{"cpu.realtimePeriod", was.RealtimePeriod, is.RealtimePeriod, func() { is.RealtimePeriod = nil }},
		{"devices", created.Devices, r.Devices, func() { r.Devices = nil }},
		{"blockIO", created.BlockIO, r.BlockIO, func() { r.BlockIO = nil }},
		{"hugepageLimits", created.HugepageLimits, r.HugepageLimits, func() { r.HugepageLimits = nil }},
		{"network", created.Network, r.Network, func() { r.Network = nil }},
		{"rdma", created.Rdma, r.Rdma, func() { r.Rdma = nil }},
	} {
		v := reflect.ValueOf(f.is)
		if v.IsZero() {
			continue
		}
		empty := (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0
		if !empty && !reflect.DeepEqual(f.was, f.is) {
			return fmt.Errorf("resources.%s cannot be changed in a guest: %w", f.name, errdefs.ErrNotImplemented)
		}
		f.drop()
	}
	for key := range r.Unified {
		// What is not the kernel's own interface would be a path in the guest.
		if strings.Contains(key, "/") || !strings.Contains(key, ".") {
			return fmt.Errorf("resources.unified: %q is not a file of a control group: %w", key, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// defaultCPUPeriod is the kernel's, in microseconds (cgroup-v2.rst, cpu.max).
const defaultCPUPeriod = 100_000

const mib = 1 << 20

// checkRoom refuses limits that the machine could not give: it has the size
// that it was made with. A limit that the container was created with is no
// change, and may be more: it then limits nothing.
func checkRoom(created, r *specs.LinuxResources, room Room) error {
	if m := r.Memory; m != nil {
		was := created.Memory
		if was == nil {
			was = &specs.LinuxMemory{}
		}
		for _, f := range []struct {
			name    string
			was, is *int64
		}{{"limit", was.Limit, m.Limit}, {"reservation", was.Reservation, m.Reservation}} {
			if f.is != nil && *f.is > int64(room.MemoryMiB)*mib && !reflect.DeepEqual(f.was, f.is) {
				return fmt.Errorf("resources.memory.%s: %d bytes: the machine has room for %d MiB, and cannot grow: %w",
					f.name, *f.is, room.MemoryMiB, errdefs.ErrOutOfRange)
			}
		}
	}
	c := r.CPU
	if c == nil || c.Quota == nil || *c.Quota <= 0 {
		return nil
	}
	if was := created.CPU; was != nil && reflect.DeepEqual(was.Quota, c.Quota) && reflect.DeepEqual(was.Period, c.Period) {
		return nil
	}
	period := int64(defaultCPUPeriod)
	if c.Period != nil && *c.Period > 0 {
		period = int64(*c.Period)
	}
	if *c.Quota > period*int64(room.VCPUs) {
		return fmt.Errorf("resources.cpu.quota: %d µs in %d µs: the machine has %d virtual CPUs: %w",
			*c.Quota, period, room.VCPUs, errdefs.ErrOutOfRange)
	}
	return nil
}
