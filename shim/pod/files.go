package pod

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hostResolvConf is what a pod without a DNS configuration gets, as from
// containerd. A variable for tests.
var hostResolvConf = "/etc/resolv.conf"

// resolvConf is the pod's resolv.conf(5). fs.ErrNotExist if nothing is asked for
// and the host has none.
func resolvConf(dns *runtime.DNSConfig) ([]byte, error) {
	if dns == nil {
		return os.ReadFile(hostResolvConf)
	}
	var b bytes.Buffer
	line := func(keyword string, values []string) error {
		for _, v := range values {
			if v == "" || strings.ContainsAny(v, " \t\r\n") {
				return fmt.Errorf("DNS configuration: %s %q: %w", keyword, v, errdefs.ErrInvalidArgument)
			}
		}
		if len(values) > 0 {
			fmt.Fprintf(&b, "%s %s\n", keyword, strings.Join(values, " "))
		}
		return nil
	}
	if err := line("search", dns.Searches); err != nil {
		return nil, err
	}
	for _, s := range dns.Servers {
		if err := line("nameserver", []string{s}); err != nil {
			return nil, err
		}
	}
	if err := line("options", dns.Options); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
