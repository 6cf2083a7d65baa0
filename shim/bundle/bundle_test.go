package bundle

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

// minimal is the least spec that can be translated.
func minimal() *specs.Spec {
	return &specs.Spec{
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"/bin/true"}, Cwd: "/"},
		Linux:   &specs.Linux{},
	}
}

func translate(t *testing.T, spec *specs.Spec) *Guest {
	t.Helper()
	g, err := Translate("c1", Pod{}, spec, "/host/rootfs")
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// refused checks that spec is refused with an error of this kind that names
// all of the words.
func refused(t *testing.T, spec *specs.Spec, kind func(error) bool, words ...string) {
	t.Helper()
	g, err := Translate("c1", Pod{}, spec, "/host/rootfs")
	if err == nil {
		t.Fatalf("translated to %+v, want an error", g)
	}
	if !kind(err) {
		t.Errorf("error is of another kind: %v", err)
	}
	for _, w := range append(words, "c1") {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error does not name %q: %v", w, err)
		}
	}
}

func ignored(t *testing.T, g *Guest, word string) {
	t.Helper()
	for _, i := range g.Ignored {
		if strings.Contains(i, word) {
			return
		}
	}
	t.Errorf("%q was dropped in silence; named are %q", word, g.Ignored)
}

func TestLoad(t *testing.T) {
	write := func(t *testing.T, text string) string {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	t.Run("good", func(t *testing.T) {
		spec, err := Load(write(t, `{"ociVersion":"1.2.0","process":{"args":["sh"]},"x-unknown":1}`))
		if err != nil || spec.Process.Args[0] != "sh" {
			t.Errorf("got %+v, %v", spec, err)
		}
	})
	t.Run("missing", func(t *testing.T) {
		dir := t.TempDir()
		if _, err := Load(dir); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), dir) {
			t.Errorf("got %v, want NotFound that names %s", err, dir)
		}
	})
	for name, text := range map[string]string{
		"empty":      "",
		"truncated":  `{"process":{"args":["sh"`,
		"wrong type": `{"process":"sh"}`,
		"array":      `[]`,
		"binary":     "\x7fELF\x00\x01",
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, text)
			if _, err := Load(dir); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), dir) {
				t.Errorf("got %v, want InvalidArgument that names %s", err, dir)
			}
		})
	}
	t.Run("unreadable", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "config.json"), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir); err == nil || errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
			t.Errorf("got %v, want an error of the host's", err)
		}
	})
}

func TestForm(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*specs.Spec)
		kind  func(error) bool
		named string
	}{
		"no root":    {func(s *specs.Spec) { s.Root = nil }, errdefs.IsInvalidArgument, "root"},
		"no process": {func(s *specs.Spec) { s.Process = nil }, errdefs.IsInvalidArgument, "process.args"},
		"no args":    {func(s *specs.Spec) { s.Process.Args = nil }, errdefs.IsInvalidArgument, "process.args"},
		"no linux":   {func(s *specs.Spec) { s.Linux = nil }, errdefs.IsInvalidArgument, "linux"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := minimal()
			tc.spoil(spec)
			refused(t, spec, tc.kind, tc.named)
		})
	}
	t.Run("harmless", func(t *testing.T) {
		spec := minimal()
		spec.Hooks = &specs.Hooks{}
		spec.Annotations = map[string]string{"io.kubernetes.cri.sandbox-id": "x", "org.example": "y", "io.containerd.bhyvelike": "z"}
		if g := translate(t, spec); len(g.Ignored) > 0 {
			t.Errorf("ignored %q", g.Ignored)
		}
	})
}

func TestRoot(t *testing.T) {
	spec := minimal()
	spec.Root.Readonly = true
	g := translate(t, spec)
	if len(g.Shares) != 1 {
		t.Fatalf("shares are %+v", g.Shares)
	}
	// Writable even so: the guest's runtime makes mount points in it.
	want := Share{Source: "/host/rootfs", Target: "rootfs", Exclusive: true}
	if g.Shares[0] != want {
		t.Errorf("share of the root is %+v, want %+v", g.Shares[0], want)
	}
	if g.Spec.Root.Path != "/run/bundles/c1/rootfs" || !g.Spec.Root.Readonly {
		t.Errorf("root is %+v", g.Spec.Root)
	}
}

func TestTranslateProcess(t *testing.T) {
	encode := func(p any) typeurl.Any {
		data, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: data}
	}
	t.Run("good", func(t *testing.T) {
		in := encode(specs.Process{
			Args: []string{"sh", "-c", "true"}, Cwd: "/tmp", Env: []string{"A=b"}, Terminal: true,
			User:            specs.User{UID: 7, AdditionalGids: []uint32{8}},
			Capabilities:    &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}},
			ApparmorProfile: "cri-containerd.apparmor.d", SelinuxLabel: "system_u:system_r:container_t:s0",
		})
		out, err := TranslateProcess(in)
		if err != nil {
			t.Fatal(err)
		}
		if out.TypeUrl != in.GetTypeUrl() {
			t.Errorf("type is %q", out.TypeUrl)
		}
		var p specs.Process
		if err := json.Unmarshal(out.Value, &p); err != nil {
			t.Fatal(err)
		}
		if p.ApparmorProfile != "" || p.SelinuxLabel != "" {
			t.Errorf("the host's labels went along: %q %q", p.ApparmorProfile, p.SelinuxLabel)
		}
		if len(p.Args) != 3 || p.Cwd != "/tmp" || p.Env[0] != "A=b" || !p.Terminal || p.User.UID != 7 || p.User.AdditionalGids[0] != 8 || p.Capabilities.Bounding[0] != "CAP_KILL" {
			t.Errorf("process is now %+v", p)
		}
	})
	for name, in := range map[string]typeurl.Any{
		"none":      nil,
		"typed nil": (*anypb.Any)(nil),
		"empty":     &anypb.Any{TypeUrl: "x"},
		"garbage":   &anypb.Any{TypeUrl: "x", Value: []byte("{")},
		"no args":   encode(specs.Process{Cwd: "/"}),
	} {
		t.Run(name, func(t *testing.T) {
			if out, err := TranslateProcess(in); !errdefs.IsInvalidArgument(err) {
				t.Errorf("got %v, %v, want InvalidArgument", out, err)
			}
		})
	}
}
