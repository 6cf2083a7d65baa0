package bhyve

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
)

const testUUID = "6f1d1b1e-0000-4000-8000-00000000abcd"

func least() config { return config{Name: vmName("a"), UUID: testUUID, VCPUs: 1, MemoryMiB: 128} }

func TestFile(t *testing.T) {
	for golden, c := range map[string]config{
		"least.conf": least(),
		"full.conf": {
			Name: vmName("web.1"), UUID: testUUID, VCPUs: 2, MemoryMiB: 1024, Wired: true, ACPI: true, Console: "stdio",
			NICs: []nic{
				{"tap7", net.HardwareAddr{2, 0, 0, 0, 0, 7}},
				{"tap12", net.HardwareAddr{0x58, 0x9c, 0xfc, 0, 0, 1}},
			},
			Disks: []hypervisor.Disk{{Path: "/dev/zvol/pool/sbx 1"}, {Path: `/img/100%\a.raw`, ReadOnly: true}},
		},
	} {
		want, err := os.ReadFile(filepath.Join("testdata", golden))
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.file()
		if err != nil || string(got) != string(want) {
			t.Errorf("%s: %v\n%s", golden, err, got)
		}
	}
}

func TestFileRefuses(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for name, change := range map[string]func(*config){
		"no name":              func(c *config) { c.Name = "" },
		"name with a line end": func(c *config) { c.Name = "a\nconfig.dump=true" },
		"no uuid":              func(c *config) { c.UUID = "" },
		"no vCPU":              func(c *config) { c.VCPUs = 0 },
		"too many vCPUs":       func(c *config) { c.VCPUs = maxVCPUs + 1 },
		"too little memory":    func(c *config) { c.MemoryMiB = 127 },
		"console on the net":   func(c *config) { c.Console = "tcp=127.0.0.1:4000" },
		"console in a file":    func(c *config) { c.Console = "/tmp/x" },
		"renamed tap":          func(c *config) { c.NICs = []nic{{"link0", mac}} },
		"tap with options":     func(c *config) { c.NICs = []nic{{"tap0,mtu=9000", mac}} },
		"no MAC":               func(c *config) { c.NICs = []nic{{"tap0", nil}} },
		"multicast MAC":        func(c *config) { c.NICs = []nic{{"tap0", net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}}} },
		"relative disk":        func(c *config) { c.Disks = []hypervisor.Disk{{Path: "img.raw"}} },
		"disk with a line end": func(c *config) { c.Disks = []hypervisor.Disk{{Path: "/img\n.raw"}} },
		"too many disks":       func(c *config) { c.Disks = make([]hypervisor.Disk, lpcSlot-firstSlot) },
	} {
		c := least()
		change(&c)
		if got, err := c.file(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v\n%s", name, err, got)
		}
	}
	// The last slots are used.
	c := least()
	for len(c.Disks) < lpcSlot-firstSlot-1 {
		c.Disks = append(c.Disks, hypervisor.Disk{Path: "/img"})
	}
	if _, err := c.file(); err != nil {
		t.Error(err)
	}
}

// FuzzEncode: whatever is encoded is read back by bhyve's rules as it was.
func FuzzEncode(f *testing.F) {
	for _, s := range []string{"", "plain", `back\slash`, "100%", `\%(name)`, "%(name)", `%\`, `\\%%`, "a=b#c", "line\nend", " "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := encode(s)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) || s != "" && !strings.ContainsAny(s, "\n\x00") {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		if got := expand(t, v); got != s {
			t.Errorf("%q was written as %q and is read as %q", s, v, got)
		}
	})
}

// expand reads a value as bhyve does. References fail the test.
func expand(t *testing.T, v string) string {
	if !strings.Contains(v, "%") {
		return v
	}
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		switch {
		case v[i] == '%':
			t.Errorf("%q has a reference at %d", v, i)
		case v[i] == '\\' && i+1 < len(v):
			i++
			b.WriteByte(v[i])
		case v[i] == '\\':
			t.Errorf("%q ends in a backslash", v)
		default:
			b.WriteByte(v[i])
		}
	}
	return b.String()
}
