package check

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
)

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
}

func TestTryNetwork(t *testing.T) {
	needsRoot(t)
	cfg := network.DefaultConfig()
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	if found, err := tryNetwork(t.Context(), cfg); err != nil || !strings.HasPrefix(found, "made one") {
		t.Errorf("%q, %v", found, err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	// Its bridge would have the name of what is there in every namespace.
	cfg.Bridge = "lo"
	if _, err := tryNetwork(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "no bridge") {
		t.Errorf("on an interface that is no bridge: %v", err)
	}
}

func TestForwarding(t *testing.T) {
	knob := filepath.Join(t.TempDir(), "ip_forward")
	if _, err := forwarding(knob); err == nil || !strings.Contains(err.Error(), "net.ipv4.ip_forward=1") {
		t.Errorf("without: %v", err)
	}
	for value, want := range map[string]string{"1\n": "on", "0\n": "off, until"} {
		if err := os.WriteFile(knob, []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
		if found, err := forwarding(knob); err != nil || !strings.HasPrefix(found, want) {
			t.Errorf("%q: %q, %v", value, found, err)
		}
	}
}

// Another's firewall is told of that drops what guests send, unless it knows them.
func TestFirewalls(t *testing.T) {
	needsRoot(t)
	rule := func(name string) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(name)},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}
	}
	for name, tc := range map[string]struct {
		hook   *nftables.ChainHook
		policy nftables.ChainPolicy
		rule   []expr.Any
		stops  bool
	}{
		"one that lets pass":            {nftables.ChainHookForward, nftables.ChainPolicyAccept, nil, false},
		"one that drops":                {nftables.ChainHookForward, nftables.ChainPolicyDrop, nil, true},
		"one that drops, for others":    {nftables.ChainHookForward, nftables.ChainPolicyDrop, rule("cubenet00\x00"), true},
		"one of what is for the host":   {nftables.ChainHookInput, nftables.ChainPolicyDrop, nil, false},
		"one that knows the bridge":     {nftables.ChainHookForward, nftables.ChainPolicyDrop, rule("cubenet0\x00"), false},
		"one that knows all such names": {nftables.ChainHookForward, nftables.ChainPolicyDrop, rule("cube"), false},
	} {
		t.Run(name, func(t *testing.T) {
			ns, err := netns.New()
			if err != nil {
				t.Fatal(err)
			}
			defer ns.Close()
			err = netns.Do(ns, func() error {
				c, err := nftables.New()
				if err != nil {
					return err
				}
				table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "firewall"})
				chain := c.AddChain(&nftables.Chain{Name: "through", Table: table, Type: nftables.ChainTypeFilter, Hooknum: tc.hook, Priority: nftables.ChainPriorityFilter, Policy: &tc.policy})
				if tc.rule != nil {
					c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: tc.rule})
				}
				if err := c.Flush(); err != nil {
					return err
				}
				found, err := firewalls("cubenet0")
				if stops := err != nil && strings.Contains(err.Error(), "chain through of table inet firewall"); stops != tc.stops || !stops && err != nil {
					t.Errorf("%q, %v", found, err)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}
