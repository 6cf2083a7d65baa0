package bundle

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func hook(path string) []specs.Hook { return []specs.Hook{{Path: path}} }

func TestHooksAreParted(t *testing.T) {
	spec := minimal()
	spec.Hooks = &specs.Hooks{
		//lint:ignore SA1019 Still written by others.
		Prestart:       hook("/p"),
		CreateRuntime:  hook("/cr"),
		StartContainer: hook("/in/the/container"),
		Poststart:      hook("/ps"),
		Poststop:       hook("/pp"),
	}
	g := translate(t, spec)
	h := g.Hooks
	//lint:ignore SA1019 Still written by others.
	if len(h.Prestart) != 1 || len(h.CreateRuntime) != 1 || len(h.Poststart) != 1 || len(h.Poststop) != 1 || h.StartContainer != nil {
		t.Errorf("the host runs %+v", h)
	}
	theirs := g.Spec.Hooks
	//lint:ignore SA1019 Still written by others.
	if len(theirs.StartContainer) != 1 || theirs.Prestart != nil || theirs.CreateRuntime != nil || theirs.Poststart != nil || theirs.Poststop != nil {
		t.Errorf("the guest runs %+v", theirs)
	}

	spec = minimal()
	spec.Hooks = &specs.Hooks{CreateRuntime: hook("/cr")}
	if g := translate(t, spec); g.Spec.Hooks != nil {
		t.Errorf("the guest runs %+v", g.Spec.Hooks)
	}
}

func TestHooksThatAreRefused(t *testing.T) {
	zero := 0
	for name, tc := range map[string]struct {
		hooks specs.Hooks
		kind  func(error) bool
		words []string
	}{
		"createContainer": {specs.Hooks{CreateContainer: hook("/usr/bin/nvidia")}, errdefs.IsNotImplemented, []string{"createContainer", "/usr/bin/nvidia"}},
		"relative":        {specs.Hooks{Poststop: hook("bin/h")}, errdefs.IsInvalidArgument, []string{"poststop[0]", "bin/h"}},
		"no path":         {specs.Hooks{StartContainer: hook("")}, errdefs.IsInvalidArgument, []string{"startContainer[0]"}},
		"no time":         {specs.Hooks{Poststart: []specs.Hook{{Path: "/h", Timeout: &zero}}}, errdefs.IsInvalidArgument, []string{"poststart[0]", "timeout"}},
	} {
		t.Run(name, func(t *testing.T) {
			spec := minimal()
			spec.Hooks = &tc.hooks
			refused(t, spec, tc.kind, tc.words...)
		})
	}
}
