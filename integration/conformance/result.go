package conformance

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// Outcome is how one test has ended.
type Outcome string

// The outcomes that there are.
const (
	Passed  Outcome = "passed"
	Failed  Outcome = "failed"
	Skipped Outcome = "skipped"
)

// Result is what one test of a suite had to say.
type Result struct {
	Name    string
	Outcome Outcome
	// Message is the suite's own word on a failure or a skip, for a person who
	// looks for a reason.
	Message string
}

// Merge is first with the results of a second try in the place of those of the
// same tests.
func Merge(first, second []Result) []Result {
	merged := slices.Clone(first)
	for _, r := range second {
		if i := slices.IndexFunc(merged, func(m Result) bool { return m.Name == r.Name }); i >= 0 {
			merged[i] = r
		}
	}
	return merged
}

// ReadJUnit reads the report of a Ginkgo suite, like critest. Tests that a
// filter of the command line left out are not results.
func ReadJUnit(r io.Reader) ([]Result, error) {
	type message struct {
		Message string `xml:"message,attr"`
	}
	var report struct {
		Suites []struct {
			Cases []struct {
				Name    string   `xml:"name,attr"`
				Status  string   `xml:"status,attr"`
				Failure *message `xml:"failure"`
				Error   *message `xml:"error"`
				Skipped *message `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.NewDecoder(r).Decode(&report); err != nil {
		return nil, fmt.Errorf("JUnit report: %w", err)
	}
	var all []Result
	for _, suite := range report.Suites {
		for _, c := range suite.Cases {
			name, isCase := strings.CutPrefix(c.Name, "[It] ")
			// Ginkgo reports its own nodes too; they matter where they fail.
			if !isCase && c.Failure == nil && c.Error == nil {
				continue
			}
			result := Result{Name: name, Outcome: Passed}
			switch {
			case c.Failure != nil:
				result.Outcome, result.Message = Failed, c.Failure.Message
			case c.Error != nil:
				result.Outcome, result.Message = Failed, c.Error.Message
			case c.Skipped != nil:
				// "skipped" alone is a filter's doing; Skip() has a message.
				reason, byTest := strings.CutPrefix(c.Skipped.Message, "skipped - ")
				if !byTest {
					continue
				}
				result.Outcome, result.Message = Skipped, reason
			}
			all = append(all, result)
		}
	}
	return sorted(all), nil
}

// goResult is the line that a Go test program writes when a test has ended.
var goResult = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \(`)

var goOutcomes = map[string]Outcome{"PASS": Passed, "FAIL": Failed, "SKIP": Skipped}

// ReadGoTest reads the verbose output of a Go test program. Tests that only
// group others count where a failure is their own; prefix, which all names have,
// is left out of them.
func ReadGoTest(r io.Reader, prefix string) ([]Result, error) {
	var all []Result
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		if m := goResult.FindStringSubmatch(lines.Text()); m != nil {
			all = append(all, Result{Name: m[2], Outcome: goOutcomes[m[1]]})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("output of a test program: %w", err)
	}
	leaves := slices.DeleteFunc(slices.Clone(all), func(r Result) bool { return isGroup(r, all) })
	for i := range leaves {
		leaves[i].Name = strings.TrimPrefix(leaves[i].Name, prefix)
	}
	return sorted(leaves), nil
}

// isGroup: r has subtests, and its outcome says no more than theirs.
func isGroup(r Result, all []Result) bool {
	var subtests, failed bool
	for _, other := range all {
		if strings.HasPrefix(other.Name, r.Name+"/") {
			subtests = true
			failed = failed || other.Outcome == Failed
		}
	}
	return subtests && (r.Outcome != Failed || failed)
}

func sorted(all []Result) []Result {
	slices.SortFunc(all, func(a, b Result) int { return strings.Compare(a.Name, b.Name) })
	return all
}
