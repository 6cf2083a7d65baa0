package cgroup

import (
	"testing"

	"github.com/containerd/errdefs"
)

func TestPath(t *testing.T) {
	for in, want := range map[string]string{
		"/default/c1":          "/default/c1",
		"default/c1":           "/default/c1",
		"//default/./c1/":      "/default/c1",
		"/kubepods/pod1/c:1":   "/kubepods/pod1/c:1",
		"system.slice:nerd:c1": "/system.slice/nerd-c1.scope",
		":nerd:c1":             "/system.slice/nerd-c1.scope",
		"system.slice::c1":     "/system.slice/c1.scope",
		"-.slice:nerd:c1":      "/nerd-c1.scope",
		"a.slice:x:b.slice":    "/a.slice/b.slice",
		"kubepods-burstable-pod_1.slice:cri-containerd:c1": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod_1.slice/cri-containerd-c1.scope",
	} {
		if got, err := Path(in); got != want || err != nil {
			t.Errorf("%q is at %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"/", ".", "/..", "../x", "/a/../../x", "slice:nerd:c1", "a--b.slice:x:c1", "a/b.slice:x:c1", "a.slice:x:", "a.slice:x:../../c1", ".slice:x:c1"} {
		if got, err := Path(in); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q is at %q, %v", in, got, err)
		}
	}
}
