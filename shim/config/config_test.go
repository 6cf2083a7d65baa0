package config

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/options"
)

// encode encodes v as containerd does: by typeurl, not as a google.com URL.
func encode(t *testing.T, v any) typeurl.Any {
	t.Helper()
	a, err := typeurl.MarshalAny(v)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaultsWithoutAFile(t *testing.T) {
	if _, err := os.Stat(DefaultPath); err == nil {
		t.Skipf("this host has a %s", DefaultPath)
	}
	t.Setenv(PathEnv, "")
	want := Default()
	for name, o := range map[string]typeurl.Any{
		"no options":        nil,
		"typed nil":         (*anypb.Any)(nil),
		"empty any":         &anypb.Any{},
		"options of no say": encode(t, &runtimeoptions.Options{TypeUrl: "whatever"}),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := FromOptions(o)
			if err != nil {
				t.Fatal(err)
			}
			if got.Guest != want.Guest || got.Machine.VCPUs != want.Machine.VCPUs || got.Machine.MemoryMiB != want.Machine.MemoryMiB ||
				got.Machine.BootTimeout != want.Machine.BootTimeout || got.Machine.AgentTimeout != want.Machine.AgentTimeout {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestDefaultIsUsable(t *testing.T) {
	c := Default()
	if c.Machine.VCPUs < 1 || c.Machine.MemoryMiB < 1 || c.Machine.BootTimeout.Duration <= 0 || c.Machine.AgentTimeout.Duration <= 0 || !filepath.IsAbs(c.Guest.Dir) {
		t.Errorf("default configuration cannot boot anything: %+v", c)
	}
}

const full = `
[guest]
dir = "/srv/guest"

[machine]
vcpus = 3
memory_mib = 1024
kernel_args = ["quiet", "panic=1"]
boot_timeout = "90s"
agent_timeout = "1m30s"
`

func checkFull(t *testing.T, c Config, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	m := c.Machine
	if c.Guest.Dir != "/srv/guest" || m.VCPUs != 3 || m.MemoryMiB != 1024 || strings.Join(m.KernelArgs, " ") != "quiet panic=1" ||
		m.BootTimeout.Duration != 90*time.Second || m.AgentTimeout.Duration != 90*time.Second {
		t.Errorf("read %+v", c)
	}
}

func TestEveryWayToTheFile(t *testing.T) {
	t.Run("path in options", func(t *testing.T) {
		c, err := FromOptions(encode(t, &runtimeoptions.Options{ConfigPath: writeFile(t, full)}))
		checkFull(t, c, err)
	})
	t.Run("body in options", func(t *testing.T) {
		c, err := FromOptions(encode(t, &runtimeoptions.Options{ConfigBody: []byte(full)}))
		checkFull(t, c, err)
	})
	t.Run("body before path", func(t *testing.T) {
		c, err := FromOptions(encode(t, &runtimeoptions.Options{ConfigBody: []byte(full), ConfigPath: "/nonexistent"}))
		checkFull(t, c, err)
	})
	t.Run("environment", func(t *testing.T) {
		t.Setenv(PathEnv, writeFile(t, full))
		c, err := FromOptions(nil)
		checkFull(t, c, err)
	})
	t.Run("options before environment", func(t *testing.T) {
		t.Setenv(PathEnv, writeFile(t, "[machine]\nvcpus = 7\n"))
		c, err := FromOptions(encode(t, &runtimeoptions.Options{ConfigPath: writeFile(t, full)}))
		checkFull(t, c, err)
	})
}

// What a runtime's table in containerd's configuration says changes the
// administrator's file, it does not replace it.
func TestABodyIsOverTheFile(t *testing.T) {
	t.Setenv(PathEnv, writeFile(t, full))
	c, err := FromOptions(encode(t, &runtimeoptions.Options{ConfigBody: []byte("[machine]\nvcpus = 7\nkernel_args = [\"debug\"]\n")}))
	if err != nil {
		t.Fatal(err)
	}
	if c.Machine.VCPUs != 7 || !slices.Equal(c.Machine.KernelArgs, []string{"debug"}) || c.Machine.MemoryMiB != 1024 || c.Guest.Dir != "/srv/guest" {
		t.Errorf("got %+v", c)
	}
	t.Setenv(PathEnv, "/no/such/file")
	if _, err := FromOptions(encode(t, &runtimeoptions.Options{ConfigBody: []byte("[machine]\n")})); !errdefs.IsNotFound(err) {
		t.Errorf("over a file that is not there: %v", err)
	}
}

func TestOwnOptions(t *testing.T) {
	t.Setenv(PathEnv, writeFile(t, full))
	c, err := FromOptions(encode(t, &options.Options{VCPUs: 2, KernelArgs: []string{"debug"}}))
	if err != nil {
		t.Fatal(err)
	}
	want := Size{VCPUs: 2}
	if c.Machine.Exact != want || !slices.Equal(c.Machine.KernelArgs, []string{"quiet", "panic=1", "debug"}) || c.Machine.VCPUs != 3 {
		t.Errorf("got %+v", c.Machine)
	}
	c, err = FromOptions(encode(t, &options.Options{MemoryMiB: 300, ConfigPath: writeFile(t, "[machine]\nvcpus = 5\n")}))
	if err != nil || c.Machine.Exact.MemoryMiB != 300 || c.Machine.VCPUs != 5 {
		t.Errorf("got %+v, %v", c.Machine, err)
	}
	for text, named := range map[string]string{
		`{"vcpu":2}`:                      "vcpu",
		`{"vcpus":"2"}`:                   "vcpus",
		`{"vcpus":-2}`:                    "-2",
		`{`:                               "options",
		`{"config_path":"/no/such/file"}`: "/no/such/file",
	} {
		_, err := FromOptions(&anypb.Any{TypeUrl: options.TypeURL, Value: []byte(text)})
		if err == nil || !strings.Contains(err.Error(), named) {
			t.Errorf("%s: got %v, want an error that names %q", text, err, named)
		}
	}
}

func TestAPartialFileKeepsTheOtherDefaults(t *testing.T) {
	c, err := parse("test", []byte("[machine]\nmemory_mib = 512\nannotations = [\"kernel-args\"]\n"), Default())
	if err != nil {
		t.Fatal(err)
	}
	if c.Machine.MemoryMiB != 512 || c.Machine.VCPUs != Default().Machine.VCPUs || c.Guest != Default().Guest ||
		!slices.Equal(c.Machine.Annotations, []string{"kernel-args"}) {
		t.Errorf("got %+v", c)
	}
}

func TestBadFiles(t *testing.T) {
	for name, tc := range map[string]struct{ text, named string }{
		"unknown key":              {"[machine]\nmemory = 512\n", "memory"},
		"unknown key's table":      {"[machine]\nmemory = 512\n", "machine"},
		"no processor":             {"[machine]\nvcpus = 0\n", "machine.vcpus"},
		"no memory":                {"[machine]\nmemory_mib = 0\n", "machine.memory_mib"},
		"less than no overhead":    {"[machine]\noverhead_mib = -1\n", "machine.overhead_mib"},
		"less than no maximum":     {"[machine]\nmax_vcpus = -1\n", "machine.max_vcpus"},
		"unknown pause mode":       {"[machine]\npause = \"disk\"\n", "disk"},
		"unknown pool mode":        {"[pool]\nmode = \"maybe\"\n", "maybe"},
		"unknown network mode":     {"[network]\nmode = \"host\"\n", "\"host\""},
		"memory somewhere":         {"[machine]\nmemory_dir = \"memory\"\n", "machine.memory_dir"},
		"unknown annotation":       {"[machine]\nannotations = [\"memory\"]\n", "\"memory\""},
		"unknown table":            {"[network]\nbridge = \"br0\"\n", "network"},
		"key at the top":           {"vcpus = 2\n", "vcpus"},
		"not TOML":                 {"[machine\n", "test.toml"},
		"wrong type":               {"[machine]\nvcpus = \"two\"\n", "line 2"},
		"duration without a unit":  {"[machine]\nboot_timeout = \"60\"\n", "60"},
		"duration as a number":     {"[machine]\nboot_timeout = 60\n", "60"},
		"negative duration":        {"[machine]\nboot_timeout = \"-1s\"\n", "-1s"},
		"zero duration":            {"[machine]\nagent_timeout = \"0s\"\n", "0s"},
		"duration that overflows":  {"[machine]\nagent_timeout = \"9999999h\"\n", "9999999h"},
		"duration that is no word": {"[machine]\nagent_timeout = \"\"\n", "test.toml"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse("test.toml", []byte(tc.text), Default())
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("got %v, want InvalidArgument", err)
			}
			if !strings.Contains(err.Error(), tc.named) {
				t.Errorf("error does not name %q: %v", tc.named, err)
			}
		})
	}
}

func TestAFileThatIsNamedMustExist(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "no.toml")
	t.Setenv(PathEnv, missing)
	for name, o := range map[string]typeurl.Any{
		"by the environment": nil,
		"by options":         encode(t, &runtimeoptions.Options{ConfigPath: missing}),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := FromOptions(o)
			if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), missing) {
				t.Errorf("got %v, want NotFound that names %s", err, missing)
			}
		})
	}
}

func TestForeignOptionsAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		options typeurl.Any
		named   string
	}{
		"runc's":       {encode(t, &runcoptions.Options{BinaryName: "crun"}), "containerd.runc.v1.Options"},
		"unknown type": {&anypb.Any{TypeUrl: "example.com/no.such.Type", Value: []byte{1}}, "no.such.Type"},
		"ours, garbled": {
			&anypb.Any{TypeUrl: encode(t, &runtimeoptions.Options{}).GetTypeUrl(), Value: []byte{0xff, 0xff}},
			"runtimeoptions.v1.Options",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := FromOptions(tc.options)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.named) {
				t.Errorf("got %v, want InvalidArgument that names %s", err, tc.named)
			}
		})
	}
}

func TestEmptyOptionsOfAnyTypeAreNone(t *testing.T) {
	t.Setenv(PathEnv, "")
	for _, o := range []*runcoptions.Options{{}, {TaskApiAddress: "unix:///s", TaskApiVersion: 3}} {
		got, err := FromOptions(encode(t, o))
		if err != nil || !reflect.DeepEqual(got, Default()) {
			t.Errorf("got %+v, %v; want the defaults", got, err)
		}
	}
}
