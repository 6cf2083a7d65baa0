package network

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

func TestPoliciesByName(t *testing.T) {
	load := func(text string) (Config, error) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "network.toml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return LoadConfig(file)
	}
	c, err := load(`
[policy]
max_flows = 1
[[policies.web.allow]]
peers = ["0.0.0.0/0"]
ports = ["443"]
protocol = "tcp"
[[policies.web.publish]]
host = 8443
guest = 443
`)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := c.PolicyNamed(""); err != nil || p.MaxFlows != 1 {
		t.Errorf("the one for all: %+v, %v", p, err)
	}
	if p, err := c.PolicyNamed("web"); err != nil || len(p.Allow) != 1 || len(p.Publish) != 1 {
		t.Errorf("web: %+v, %v", p, err)
	}
	if _, err := c.PolicyNamed("wep"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("one that is not there: %v", err)
	}
	for name, text := range map[string]string{
		"malformed":   "[[policies.web.allow]]\npeers = [\"nonsense/9\"]\n",
		"unknown key": "[policies.web]\nalow = []\n",
	} {
		if _, err := load(text); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
