package bundle

import (
	"reflect"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// onFreeBSD are the mounts of a spec that containerd writes on FreeBSD for a
// Linux image.
func onFreeBSD() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "linprocfs", Source: "linprocfs", Options: []string{"nosuid", "noexec"}},
		{Destination: "/sys", Type: "linsysfs", Source: "linsysfs", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "devfs", Source: "devfs", Options: []string{"ruleset=4"}},
		{Destination: "/dev/fd", Type: "fdescfs", Source: "fdescfs"},
	}
}

func TestMountsOfAFreeBSDHost(t *testing.T) {
	dir := tree(t)
	shm := specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m"}}
	spec := withMounts(append(onFreeBSD(), shm, specs.Mount{Destination: "/data", Type: "nullfs", Source: dir + "/dir", Options: []string{"ro"}})...)
	g := translate(t, spec)

	got := map[string]specs.Mount{}
	for i, m := range g.Spec.Mounts {
		got[m.Destination] = m
		if m.Destination == "/dev" && i > 1 {
			t.Error("/dev is mounted over what is below it")
		}
	}
	for dest, want := range map[string]string{
		"/proc": "proc", "/sys": "sysfs", "/dev": "tmpfs", "/dev/pts": "devpts", "/dev/mqueue": "mqueue", "/run": "tmpfs", "/data": "bind",
	} {
		if got[dest].Type != want {
			t.Errorf("%s is %q, want %s", dest, got[dest].Type, want)
		}
	}
	if !reflect.DeepEqual(got["/dev/shm"], shm) {
		t.Errorf("what was asked for at /dev/shm became %+v", got["/dev/shm"])
	}
	if len(g.Spec.Mounts) != 8 {
		t.Errorf("%d mounts: %+v", len(g.Spec.Mounts), g.Spec.Mounts)
	}
	if len(g.Volumes) != 1 || g.Volumes[0].Source != dir+"/dir" || !g.Volumes[0].ReadOnly {
		t.Errorf("volumes are %+v", g.Volumes)
	}
	if len(g.Ignored) > 0 {
		t.Errorf("ignored: %q", g.Ignored)
	}
}

func TestNamespacesOfAFreeBSDHost(t *testing.T) {
	for name, tc := range map[string]struct {
		mounts []specs.Mount
		asked  []specs.LinuxNamespace
		want   int
	}{
		"a FreeBSD host's spec without any":  {onFreeBSD(), nil, 5},
		"a FreeBSD host's spec with some":    {onFreeBSD(), []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}}, 3},
		"a Linux host's spec is left as is":  {nil, nil, 2},
		"so is one with a mount of its name": {[]specs.Mount{{Destination: "/proc", Type: "proc"}}, nil, 2},
	} {
		spec := withMounts(tc.mounts...)
		spec.Linux.Namespaces = tc.asked
		if got := translate(t, spec).Spec.Linux.Namespaces; len(got) != tc.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestOneTranslationDoesNotChangeTheNext(t *testing.T) {
	first := translate(t, withMounts(onFreeBSD()...)).Spec.Mounts
	first[0].Type = "changed"
	if guestMounts[0].Type == "changed" {
		t.Error("the guest's mounts are shared between bundles")
	}
}
