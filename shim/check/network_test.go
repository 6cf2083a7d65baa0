package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/pf"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
)

// The default network is looked at where it is configured.
func TestNetworks(t *testing.T) {
	dir := t.TempDir()
	file, network := filepath.Join(dir, "config.toml"), filepath.Join(dir, "network.toml")
	t.Setenv(config.PathEnv, file)
	items := func(shim, described string) []item {
		t.Helper()
		for path, content := range map[string]string{file: shim, network: described} {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return networks()
	}
	if got := items("", ""); got != nil {
		t.Errorf("%d items without a network", len(got))
	}
	named := fmt.Sprintf("[network]\nmode = \"default\"\nconfig = %q\n", network)
	good := items(named, "bridge = \"guests0\"\n")
	if found, err := good[0].look(t.Context()); len(good) < 2 || err != nil || found != "10.77.0.10 to 10.77.0.200 on guests0" {
		t.Errorf("%d items: %q, %v", len(good), found, err)
	}
	for name, tc := range map[string]struct{ shim, network, want string }{
		"a key that nobody knows":        {named, "brigde = \"guests0\"\n", "brigde"},
		"a policy that nobody has named": {named + "policy = \"web\"\n", "", `"web"`},
	} {
		got := items(tc.shim, tc.network)
		if len(got) != 1 {
			t.Errorf("%s: %d items", name, len(got))
		}
		var out bytes.Buffer
		if status := run(t.Context(), &out, got); status != 1 || !strings.HasPrefix(out.String(), "MISSING  network configuration: ") || !strings.Contains(out.String(), tc.want) {
			t.Errorf("%s: status %d\n%s", name, status, &out)
		}
	}
}

// What pf lacks is said with what to do about it.
func TestPFRules(t *testing.T) {
	const enabled = "Status: Enabled for 0 days 00:00:01\n"
	for name, tc := range map[string]struct {
		info, rules string
		err         error
		want        []string
	}{
		"ready":            {enabled, pf.MainRules, nil, []string{"ok       pf(4) for the network: "}},
		"off":              {"Status: Disabled\n", pf.MainRules, nil, []string{"MISSING  ", "pf_enable"}},
		"without our rows": {enabled, "pass all\n", nil, []string{"MISSING  ", "pf.conf", `anchor "cube/*"`}},
		"not loaded":       {"", "", errors.New("pfctl: /dev/pf: No such file or directory"), []string{"MISSING  ", "kldload pf"}},
	} {
		pfctl := func(_ context.Context, _ string, argv ...string) ([]byte, error) {
			switch {
			case slices.Contains(argv, "info"):
				return []byte(tc.info), tc.err
			case slices.Contains(argv, "rules"):
				return []byte(tc.rules), tc.err
			}
			return nil, tc.err
		}
		var out bytes.Buffer
		run(t.Context(), &out, []item{pfRules(pfctl, "cubenet0")})
		for _, want := range tc.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: no %q in %s", name, want, &out)
			}
		}
	}
}
