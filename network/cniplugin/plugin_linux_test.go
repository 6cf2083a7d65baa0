package cniplugin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
)

// The test's program is the plugin where CNI calls it.
func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" {
		Main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// call runs the plugin as a CNI runtime does, on a host that is a namespace.
func call(t *testing.T, host, pod *os.File, command, conf string) ([]byte, error) {
	t.Helper()
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), pod.Fd())
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_PATH=/none", "CNI_NETNS=" + path}
	cmd.Stdin = strings.NewReader(conf)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	err := netns.Do(host, cmd.Run)
	return out.Bytes(), err
}

func TestPlugin(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	var ns [2]*os.File
	for i := range ns {
		f, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		ns[i] = f
	}
	host, pod := ns[0], ns[1]
	dir := t.TempDir()
	file := filepath.Join(dir, "network.toml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "state = %q\ndns = [\"192.0.2.53\"]\n", filepath.Join(dir, "state")), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "n", "type": "cni-bhyve", "config": %q, "policy": {"allow": [{"peers": ["0.0.0.0/0"]}]},
		"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}}`, file)

	out, err := call(t, host, pod, "ADD", conf)
	if err != nil {
		t.Fatalf("ADD: %v: %s", err, out)
	}
	var result current.Result
	if err := json.Unmarshal(out, &result); err != nil {
		t.Fatal(err)
	}
	if len(result.IPs) != 1 || len(result.Interfaces) != 3 || result.Interfaces[2].Name != "eth0" || len(result.DNS.Nameservers) != 1 {
		t.Fatalf("result: %s", out)
	}
	addr := result.IPs[0].Address.IP
	err = netns.Do(pod, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err == nil && (len(addrs) != 1 || !addrs[0].IP.Equal(addr) || link.Attrs().HardwareAddr.String() != result.Interfaces[2].Mac) {
			t.Errorf("the namespace has %v on %+v, the result says %s", addrs, link.Attrs(), out)
		}
		if err == nil {
			_, err = netlink.RouteGet(net.IPv4(192, 0, 2, 53))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if out, err := call(t, host, pod, "CHECK", strings.Replace(conf, `"name"`, `"prevResult": `+string(mustJSON(t, result))+`, "name"`, 1)); err != nil {
		t.Errorf("CHECK: %v: %s", err, out)
	}
	// Valid attachments of another network have none of ours, and do not mean it.
	other := strings.Replace(strings.Replace(conf, "1.0.0", "1.1.0", 1), `"name": "n"`, `"cni.dev/valid-attachments": [], "name": "other"`, 1)
	if out, err := call(t, host, pod, "GC", other); err != nil {
		t.Errorf("GC of another network: %v: %s", err, out)
	}
	err = netns.Do(pod, func() error { _, err := netlink.LinkByName("eth0"); return err })
	if err != nil {
		t.Errorf("after GC of another network: %v", err)
	}
	// Valid attachments without ours: it is released.
	gc := strings.Replace(strings.Replace(conf, "1.0.0", "1.1.0", 1), `"name"`, `"cni.dev/valid-attachments": [], "name"`, 1)
	if out, err := call(t, host, pod, "GC", gc); err != nil {
		t.Errorf("GC: %v: %s", err, out)
	}
	err = netns.Do(pod, func() error {
		if _, err := netlink.LinkByName("eth0"); err == nil {
			t.Error("the interface is there after GC")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for range 2 {
		if out, err := call(t, host, pod, "DEL", conf); err != nil {
			t.Errorf("DEL: %v: %s", err, out)
		}
	}
	chained := strings.Replace(conf, `"name"`, `"prevResult": {"cniVersion": "1.0.0"}, "name"`, 1)
	if out, err := call(t, host, pod, "ADD", chained); err == nil || !strings.Contains(string(out), "first plugin") {
		t.Errorf("after another plugin: %v: %s", err, out)
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
