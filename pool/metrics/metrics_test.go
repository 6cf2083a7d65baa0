package metrics

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
)

type source struct{}

func (source) Status() (*poolv1.StatusResponse, error) {
	return &poolv1.StatusResponse{
		Templates: []*poolv1.TemplateStatus{{
			Template: &poolv1.Template{Name: "std", Low: 2, High: 4},
			Hot:      3, ClaimsHot: 7, MadeCold: 10, Trouble: "something",
		}},
		Memory:  &poolv1.Memory{Available: 1 << 30},
		Claimed: 5, ClaimsUnfit: 9,
	}, nil
}

func TestScrape(t *testing.T) {
	dir, err := os.MkdirTemp("", "m")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "sock")
	server, err := Serve(source{}, "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://pool/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`bhyve_pool_machines{state="hot",template="std"} 3`,
		`bhyve_pool_claims_total{template="std",tier="hot"} 7`,
		`bhyve_pool_made_total{from="cold",template="std"} 10`,
		`bhyve_pool_watermark{template="std",which="high"} 4`,
		`bhyve_pool_trouble{template="std"} 1`,
		`bhyve_pool_claimed_machines 5`,
		`bhyve_pool_claims_unfit_total 9`,
		`bhyve_pool_memory_bytes{kind="available"} 1.073741824e+09`,
	} {
		if !strings.Contains(string(body), line+"\n") {
			t.Errorf("no line %q in\n%s", line, body)
		}
	}
}

// There is no authentication, so nobody else may ask.
func TestOnlyLoopback(t *testing.T) {
	for _, address := range []string{":9000", "0.0.0.0:9000", "192.0.2.1:9000", "nonsense"} {
		if server, err := Serve(source{}, address); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", address, err)
			if server != nil {
				server.Close()
			}
		}
	}
}
