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
	clockOwned:   regexp.MustCompile(`\bt_owned=([\d.]+)`),
	clockRunning: regexp.MustCompile(`\bt_launch=([\d.]+)`),
	clockAgent:   regexp.MustCompile(`\bt_agent=([\d.]+)`),
}

var (
	machineField = regexp.MustCompile(`\bmachine=(\S+)`)
	pathField    = regexp.MustCompile(`\bpath=(\S+)`)
	ageField     = regexp.MustCompile(`\bage=([\d.]+)`)
	bootIDField  = regexp.MustCompile(`\bboot_id=(\S+)`)
)

// addShim adds the clocks that only the shim has, and what it says of the
// machine, from its log line for the sandbox id.
func (s *subject) addShim(ctx context.Context, sample *Sample, id string, logged int64) error {
	var line string
	if err := lab.Eventually(ctx, func() error {
		log, err := s.lab.LogSince(logged)
		if err != nil {
			return err
		}
		for l := range strings.Lines(log) {
			if strings.Contains(l, shimMessage) && strings.Contains(l, " sandbox="+id+" ") {
				line = l
				return nil
			}
		}
		return fmt.Errorf("no %q of sandbox %s in the log", shimMessage, id)
	}); err != nil {
		return err
	}
	for clock, field := range shimClocks {
		if m := field.FindStringSubmatch(line); m != nil {
			ms, err := strconv.ParseFloat(m[1], 64)
			if err != nil {
				return err
			}
			sample.Clocks[clock] = ms
		}
	}
	first := func(field *regexp.Regexp) string {
		if m := field.FindStringSubmatch(line); m != nil {
			return m[1]
		}
		return ""
	}
	sample.Machine = &Origin{ID: first(machineField), Path: first(pathField)}
	sample.Machine.AgeMS, _ = strconv.ParseFloat(first(ageField), 64)
	return s.prove(sample, first(bootIDField))
}

// prove compares a sample with what it has to be: the machine that the shim
// speaks of is the one that the process saw, it came from where it is counted,
// and its kernel is as old as that.
func (s *subject) prove(sample *Sample, bootID string) error {
	proof, m := sample.Proof, sample.Machine
	took := sample.Clocks[clockFirstByte] / 1000
	switch {
	case m.ID == "" || proof.BootID == "":
		return fmt.Errorf("%s: a sample without proof: %+v, %+v", s.tier, proof, m)
	case proof.BootID != bootID:
		return fmt.Errorf("%s: the process ran on boot id %s, the shim's machine %s has %s", s.tier, proof.BootID, m.ID, bootID)
	case m.Path != s.path:
		return fmt.Errorf("%s: machine %s came from %q, not from %q", s.tier, m.ID, m.Path, s.path)
	case s.path == pathBoot && proof.UptimeSeconds > took+1:
		return fmt.Errorf("%s: machine %s has been up for %.1f s after %.1f s", s.tier, m.ID, proof.UptimeSeconds, took)
	case s.path != pathBoot && proof.UptimeSeconds < took-sample.Clocks[clockRunning]/1000:
		return fmt.Errorf("%s: machine %s has been up for %.1f s only after %.1f s: it was booted", s.tier, m.ID, proof.UptimeSeconds, took)
	}
	return nil
}
