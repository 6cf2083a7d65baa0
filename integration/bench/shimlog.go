//go:build linux

package bench

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// shimMessage is what the shim logs once a machine is up, with these fields in
// milliseconds since the request reached it.
const shimMessage = "sandbox machine is up"

var shimClocks = map[string]*regexp.Regexp{
	clockRunning: regexp.MustCompile(`\bt_launch=(\d+)`),
	clockAgent:   regexp.MustCompile(`\bt_agent=(\d+)`),
}

// addShimClocks adds the clocks that only the shim has, from the log line of
// the machine that the sample's proof came from.
func (s *subject) addShimClocks(ctx context.Context, sample *Sample, logged int64) error {
	var line string
	if err := lab.Eventually(ctx, func() error {
		log, err := s.lab.LogSince(logged)
		if err != nil {
			return err
		}
		for l := range strings.Lines(log) {
			if strings.Contains(l, shimMessage) && strings.Contains(l, sample.Proof.BootID) {
				line = l
				return nil
			}
		}
		return fmt.Errorf("no %q with boot id %s in the log", shimMessage, sample.Proof.BootID)
	}); err != nil {
		return err
	}
	for clock, field := range shimClocks {
		m := field.FindStringSubmatch(line)
		if m == nil {
			return fmt.Errorf("no field %v in %q", field, line)
		}
		ms, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return err
		}
		sample.Clocks[clock] = ms
	}
	return nil
}
