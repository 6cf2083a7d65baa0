//go:build linux

package bench

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/steps"
)

// What the shim logs: once a machine is up, with the fields of shimClocks in
// milliseconds since the request reached it; and once a container has started,
// with its steps.
const (
	upMessage      = "sandbox machine is up"
	startedMessage = "container has started"
)

var shimClocks = map[string]*regexp.Regexp{
	clockOwned:   regexp.MustCompile(`\bt_owned=([\d.]+)`),
	clockRunning: regexp.MustCompile(`\bt_launch=([\d.]+)`),
	clockAgent:   regexp.MustCompile(`\bt_agent=([\d.]+)`),
	clockThawed:  regexp.MustCompile(`\bt_thawed=([\d.]+)`),
}

var (
	machineField = regexp.MustCompile(`\bmachine=(\S+)`)
	pathField    = regexp.MustCompile(`\bpath=(\S+)`)
	ageField     = regexp.MustCompile(`\bage=([\d.]+)`)
	bootIDField  = regexp.MustCompile(`\bboot_id=(\S+)`)
	uptimeField  = regexp.MustCompile(`\buptime=([\d.]+)`)
)

// addShim adds the clocks that only the shim has, and what it says of the
// machine, from its log line for the sandbox id.
func (s *subject) addShim(ctx context.Context, sample *Sample, id string, logged int64) error {
	line, err := s.logged(ctx, logged, upMessage, "sandbox", id)
	if err != nil {
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
	started, err := s.logged(ctx, logged, startedMessage, "container", id)
	if err != nil {
		return err
	}
	if sample.Steps, err = parseSteps(started); err != nil {
		return err
	}
	sample.Machine = &Origin{ID: first(machineField), Path: first(pathField)}
	sample.Machine.AgeMS, _ = strconv.ParseFloat(first(ageField), 64)
	sample.Machine.UptimeMS, _ = strconv.ParseFloat(first(uptimeField), 64)
	return s.prove(sample, first(bootIDField))
}

// logged is the line of the log, from an offset on, with this message and field.
func (s *subject) logged(ctx context.Context, from int64, message, field, id string) (line string, err error) {
	id = fmt.Sprintf(" %s=%s ", field, id)
	err = lab.Eventually(ctx, func() error {
		log, err := s.lab.LogSince(from)
		if err != nil {
			return err
		}
		for line = range strings.Lines(log) {
			if strings.Contains(line, message) && strings.Contains(line, id) {
				return nil
			}
		}
		return fmt.Errorf("no %q with%sin the log", message, id)
	})
	return line, err
}

var stepsField = regexp.MustCompile(`\bsteps="([^"]*)"`)

func parseSteps(line string) (list []Step, err error) {
	m := stepsField.FindStringSubmatch(line)
	if m == nil {
		return nil, fmt.Errorf("no steps in %q", line)
	}
	noted, err := steps.Parse(m[1])
	for _, s := range noted {
		list = append(list, Step{Name: s.Name, Begin: milliseconds(s.Begin), Took: milliseconds(s.End - s.Begin)})
	}
	return list, err
}

// prove compares a sample with what it has to be: the machine that the shim
// speaks of is the one that the process saw, it came from where it is counted,
// and its kernel is as old as that.
func (s *subject) prove(sample *Sample, bootID string) error {
	proof, m := sample.Proof, sample.Machine
	took := sample.Clocks[clockFirstByte] / 1000
	// A guest that is not run for some seconds loses time, so the comparison is of
	// the moment when the agent answered, which is soon.
	ran, uptime := sample.Clocks[clockAgent]-sample.Clocks[clockRunning], m.UptimeMS
	switch {
	case m.ID == "" || proof.BootID == "":
		return fmt.Errorf("%s: a sample without proof: %+v, %+v", s.tier, proof, m)
	case proof.BootID != bootID:
		return fmt.Errorf("%s: the process ran on boot id %s, the shim's machine %s has %s", s.tier, proof.BootID, m.ID, bootID)
	case m.Path != s.path:
		return fmt.Errorf("%s: machine %s came from %q, not from %q", s.tier, m.ID, m.Path, s.path)
	case s.path == pathBoot && proof.UptimeSeconds > took+1:
		return fmt.Errorf("%s: machine %s has been up for %.1f s after %.1f s", s.tier, m.ID, proof.UptimeSeconds, took)
	case s.path != pathBoot && uptime <= ran:
		return fmt.Errorf("%s: machine %s had been up for %.0f ms only when it had run for %.0f ms: it was booted", s.tier, m.ID, uptime, ran)
	case proof.UptimeSeconds < uptime/1000-1:
		return fmt.Errorf("%s: machine %s has been up for %.1f s, and %.1f s before that", s.tier, m.ID, proof.UptimeSeconds, uptime/1000)
	}
	return nil
}
