package command

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
)

func TestStatusIsReadable(t *testing.T) {
	now := time.Unix(1000, 0)
	var out bytes.Buffer
	err := printStatus(&out, &poolv1.StatusResponse{
		Templates: []*poolv1.TemplateStatus{{
			Template: &poolv1.Template{Name: "std", Low: 4, High: 8}, Hot: 5, Making: 2,
			Checkpoint: &poolv1.Checkpoint{Bytes: 133 << 20}, ClaimsHot: 1234, RefillRate: 12.4,
			Trouble: "first line\nsecond",
		}},
		Memory: &poolv1.Memory{Total: 24 << 30, Available: 9 << 29, Reserve: 3 << 30}, DaemonRss: 17 << 20,
		Since: timestamppb.New(now.Add(-90 * time.Second)), Claimed: 3, Draining: true,
		ClaimsUnfit: 9, LastUnfit: "1 vCPU, network interface",
	}, now)
	if err != nil {
		t.Fatal(err)
	}
	text := out.String()
	lines := strings.Split(text, "\n")
	if got := strings.Fields(lines[1]); strings.Join(got, " ") != "std 5 4-8 2 0 133 MiB 1234 0 0 0 12 0 0" {
		t.Errorf("row of the template: %q", got)
	}
	if len(lines[0]) != len(lines[1]) {
		t.Errorf("columns are not aligned:\n%s", text)
	}
	for _, want := range []string{"4.5 GiB of 24 GiB available", "daemon 17 MiB, up 1m30s", "still run: 3", "no template: 9, the last for 1 vCPU, network interface\n", "draining", "std: first line …\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// A template is of what the shim's configuration says, unless flags say otherwise.
func TestTemplateOfTheConfiguration(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct {
		config, flags string
		memory        uint32
		nic           bool
	}{
		{"", "", 256, false},
		{"", "--nic --memory-mib 384", 384, true},
		{"machine.memory_mib = 512", "", 512, false},
		{"network.mode = 'none'", "", 256, false},
		{"network.mode = 'default'", "", 256, true},
		{"network.mode = 'cni'", "", 256, true},
		{"network.mode = 'default'", "--nic=false", 256, false},
	} {
		path := filepath.Join(dir, "config.toml")
		if err := os.WriteFile(path, []byte(tc.config+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		var got *poolv1.Template
		c := addCommand()
		c.Action = func(_ context.Context, c *cli.Command) (err error) {
			got, err = templateFrom(c)
			return err
		}
		if err := c.Run(t.Context(), append([]string{"add", "std", "--config", path}, strings.Fields(tc.flags)...)); err != nil {
			t.Fatal(err)
		}
		if got.Name != "std" || got.Shape.Nic != tc.nic || got.Shape.MemoryMib != tc.memory {
			t.Errorf("%s %s: %v", tc.config, tc.flags, got)
		}
	}
}

// Flags may stand on either side of an argument, and what is wrong is told before
// anything is asked of a daemon.
func TestCommandLine(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none")
	for _, tc := range []struct{ args, want string }{
		{"status", "is `bhyve-pool serve` running?"},
		{"template add std --low 1 --high 2", "is `bhyve-pool serve` running?"},
		{"template add --low 1 std", "is `bhyve-pool serve` running?"},
		{"template add", "0 arguments"},
		{"template rm a b", "2 arguments"},
		{"warm std", "1 arguments"},
		{"evict std --count x", "count"},
	} {
		args := append([]string{"bhyve-pool", "--socket", socket}, strings.Fields(tc.args)...)
		app := New(nil)
		app.Writer, app.ErrWriter = &bytes.Buffer{}, &bytes.Buffer{}
		err := app.Run(context.Background(), args)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.args, err, tc.want)
		}
		if strings.Contains(tc.want, "running") && !errdefs.IsUnavailable(err) {
			t.Errorf("%s: %v, want unavailable", tc.args, err)
		}
	}
}
