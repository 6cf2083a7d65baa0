package conformance

import (
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/pelletier/go-toml/v2"
)

// Reasons are why tests of the suites do not pass.
type Reasons struct {
	Reason []Reason `toml:"reason"`
}

// Reason is why some tests of a suite do not pass.
type Reason struct {
	Suite   string  `toml:"suite"`
	Outcome Outcome `toml:"outcome"`
	// Tests are names, as the suite has them; * in one stands for anything but a
	// slash.
	Tests []string `toml:"tests"`
	Why   string   `toml:"why"`
}

// ParseReasons reads the reasons file.
func ParseReasons(data []byte) (*Reasons, error) {
	var all Reasons
	if err := toml.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("reasons: %w", err)
	}
	for _, r := range all.Reason {
		if r.Why == "" || len(r.Tests) == 0 {
			return nil, fmt.Errorf("reasons: one for %s has no tests or says nothing", r.Suite)
		}
		if r.Outcome != Failed && r.Outcome != Skipped {
			return nil, fmt.Errorf("reasons: %q is no outcome that needs one", r.Outcome)
		}
		for _, t := range r.Tests {
			if _, err := path.Match(t, ""); err != nil {
				return nil, fmt.Errorf("reasons: %q: %w", t, err)
			}
		}
	}
	return &all, nil
}

// why finds the reason of a result that is not a pass.
func (all *Reasons) why(suite string, r Result) (Reason, bool) {
	for _, reason := range all.Reason {
		if reason.Suite == suite && reason.Outcome == r.Outcome && slices.ContainsFunc(reason.Tests, func(t string) bool { return matches(t, r.Name) }) {
			return reason, true
		}
	}
	return Reason{}, false
}

// Unexplained are the names of the tests that failed without a reason.
func (all *Reasons) Unexplained(suite string, results []Result) []string {
	var names []string
	for _, r := range results {
		if _, ok := all.why(suite, r); r.Outcome == Failed && !ok {
			names = append(names, r.Name)
		}
	}
	return names
}

func matches(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return pattern == name || err == nil && ok
}

// Check returns an error that names every result without a reason, and every
// reason that the results do not bear out. Reasons for tests that are not among
// the results are stale only in a complete run.
func (all *Reasons) Check(suite string, results []Result, complete bool) error {
	var errs []error
	for _, r := range results {
		if r.Outcome == Passed {
			continue
		}
		if _, ok := all.why(suite, r); !ok {
			errs = append(errs, fmt.Errorf("%s: %s %s, and there is no reason for it: %s", suite, r.Name, r.Outcome, r.Message))
		}
	}
	for _, reason := range all.Reason {
		if reason.Suite != suite {
			continue
		}
		for _, test := range reason.Tests {
			if err := stale(test, reason.Outcome, results, complete); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", suite, err))
			}
		}
	}
	return errors.Join(errs...)
}

func stale(test string, outcome Outcome, results []Result, complete bool) error {
	var seen bool
	for _, r := range results {
		if matches(test, r.Name) {
			seen = true
			if r.Outcome != outcome {
				return fmt.Errorf("%s %s, but there is a reason why it is %s", r.Name, r.Outcome, outcome)
			}
		}
	}
	if !seen && complete {
		return fmt.Errorf("there is a reason for %q, but no such test", test)
	}
	return nil
}
