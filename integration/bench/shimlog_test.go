//go:build linux

package bench

import (
	"strings"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

func TestSampleWithoutProofIsRefused(t *testing.T) {
	hot := &subject{tier: TierPrewarm, path: pathHot}
	boot := &subject{tier: TierBootFull, path: pathBoot}
	sample := func(path string, uptime float64) *Sample {
		return &Sample{
			Clocks:  map[string]float64{clockFirstByte: 2000, clockRunning: 10, clockAgent: 1510},
			Proof:   pattern.Boot{BootID: "b", UptimeSeconds: uptime},
			Machine: &Origin{ID: "m", Path: path, UptimeMS: 1000*uptime - 490},
		}
	}
	younger := sample(pathHot, 7)
	younger.Proof.UptimeSeconds = 2
	for name, tc := range map[string]struct {
		s      *subject
		sample *Sample
		bootID string
		want   string
	}{
		"hot":                   {hot, sample(pathHot, 7), "b", ""},
		"booted":                {boot, sample(pathBoot, 1.5), "b", ""},
		"another path":          {hot, sample(pathCold, 7), "b", "not from"},
		"another machine":       {hot, sample(pathHot, 7), "c", "boot id"},
		"hot, but just booted":  {hot, sample(pathHot, 1.5), "b", "it was booted"},
		"a younger kernel":      {hot, younger, "b", "before that"},
		"booted, but long ago":  {boot, sample(pathBoot, 7), "b", "has been up"},
		"nothing from the shim": {hot, &Sample{Machine: &Origin{}, Proof: pattern.Boot{BootID: "b"}}, "b", "without proof"},
		"nothing from inside":   {hot, &Sample{Machine: &Origin{ID: "m", Path: pathHot}}, "", "without proof"},
	} {
		err := tc.s.prove(tc.sample, tc.bootID)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}
