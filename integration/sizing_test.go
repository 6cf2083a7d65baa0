//go:build linux || freebsd

package integration

import (
	"context"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/options"
)

// testMachineSize looks at a machine that was made for a container's limits, an
// annotation and options, and at the limits in it.
func testMachineSize(r *rig) {
	score := -17
	id := r.startWith(
		[]containerd.NewContainerOpts{containerd.WithRuntime(r.runtime, &options.Options{KernelArgs: []string{"lab.seen=1"}})},
		oci.WithMemoryLimit(200*mib),
		oci.WithAnnotations(map[string]string{"io.containerd.bhyve.vcpus": "2", "org.example.theirs": "x"}),
		oci.WithRlimit(&specs.POSIXRlimit{Type: "RLIMIT_CORE", Hard: 321, Soft: 123}),
		func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
			s.Process.OOMScoreAdj = &score
			return nil
		},
	)
	out := r.exec(id, nil, nil, nil, "/bin/sh", "-c",
		"grep -c ^processor /proc/cpuinfo; awk '/MemTotal/ { print ($2 > 256*1024 && $2 < 384*1024) }' /proc/meminfo; "+
			"cat /proc/1/oom_score_adj; awk '/core file size/ { print $5, $6 }' /proc/1/limits; grep -o lab.seen=1 /proc/cmdline")
	r.expect(out, 0, "2\n1\n-17\n123 321\nlab.seen=1\n")
	r.wantPlace(id)

	for name, opt := range map[string]oci.SpecOpts{
		"unknown annotation":       oci.WithAnnotations(map[string]string{"io.containerd.bhyve.vcpu": "2"}),
		"annotation out of bounds": oci.WithAnnotations(map[string]string{"io.containerd.bhyve.vcpus": "9999"}),
	} {
		if _, err := r.tryStartWith(nil, opt); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "io.containerd.bhyve.vcpu") {
			r.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := r.tryStartWith(nil, oci.WithAnnotations(map[string]string{"io.containerd.bhyve.kernel-args": "x"})); !errdefs.IsPermissionDenied(err) {
		r.Errorf("an annotation that is not enabled: got %v", err)
	}
}
