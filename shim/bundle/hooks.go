package bundle

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// translateHooks parts the hooks that the host runs from those that the guest's
// runtime runs. startContainer hooks are looked for and run inside the
// container, so they stay. A createContainer hook is a program of the host's
// that runs in the container's namespaces: there is no place that has both.
func translateHooks(t *translation) error {
	h := t.spec.Hooks
	if h == nil {
		return nil
	}
	if len(h.CreateContainer) > 0 {
		return fmt.Errorf("hooks.createContainer %s: a program of the host cannot run in a guest's namespaces: %w",
			h.CreateContainer[0].Path, errdefs.ErrNotImplemented)
	}
	for _, kind := range []struct {
		name  string
		hooks []specs.Hook
	}{
		//lint:ignore SA1019 Prestart is deprecated and still written.
		{"prestart", h.Prestart},
		{"createRuntime", h.CreateRuntime},
		{"startContainer", h.StartContainer},
		{"poststart", h.Poststart},
		{"poststop", h.Poststop},
	} {
		for i, hook := range kind.hooks {
			if err := checkHook(hook); err != nil {
				return fmt.Errorf("hooks.%s[%d]: %w", kind.name, i, err)
			}
		}
	}
	t.guest.Hooks = *h
	t.guest.Hooks.StartContainer = nil
	t.spec.Hooks = nil
	if len(h.StartContainer) > 0 {
		t.spec.Hooks = &specs.Hooks{StartContainer: h.StartContainer}
	}
	return nil
}

// checkHook holds a hook to config.md, "POSIX-platform Hooks".
func checkHook(h specs.Hook) error {
	switch {
	case !filepath.IsAbs(h.Path):
		return fmt.Errorf("path %q is not absolute: %w", h.Path, errdefs.ErrInvalidArgument)
	case h.Timeout != nil && *h.Timeout <= 0:
		return fmt.Errorf("timeout %d: want seconds, more than none: %w", *h.Timeout, errdefs.ErrInvalidArgument)
	}
	return nil
}
