package conformance

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

const junit = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites><testsuite name="CRI validation">
<testcase name="[BeforeSuite]" status="passed"></testcase>
<testcase name="[It] b passes" status="passed"></testcase>
<testcase name="[It] a fails" status="failed"><failure message="it broke" type="failed"></failure></testcase>
<testcase name="[It] c skips itself" status="skipped"><skipped message="skipped - no AppArmor"></skipped></testcase>
<testcase name="[It] d was filtered" status="skipped"><skipped message="skipped"></skipped></testcase>
</testsuite></testsuites>`

func TestReadJUnit(t *testing.T) {
	got, err := ReadJUnit(strings.NewReader(junit))
	want := []Result{
		{"a fails", Failed, "it broke"},
		{"b passes", Passed, ""},
		{"c skips itself", Skipped, "no AppArmor"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

const goOutput = `=== RUN   TestShim/bhyve/Lifecycle
    x.go:1: --- PASS: not a line of the program's
--- FAIL: TestShim (9.1s)
    --- FAIL: TestShim/bhyve (9.1s)
        --- PASS: TestShim/bhyve/Lifecycle (3.0s)
        --- FAIL: TestShim/bhyve/Exec (3.0s)
            --- FAIL: TestShim/bhyve/Exec/one (3.0s)
        --- FAIL: TestShim/bhyve/Leaks (3.0s)
            --- PASS: TestShim/bhyve/Leaks/inner (3.0s)
        --- SKIP: TestShim/bhyve/OOM (0.0s)
`

func TestReadGoTest(t *testing.T) {
	got, err := ReadGoTest(strings.NewReader(goOutput), "TestShim/bhyve/")
	want := []Result{
		{Name: "Exec/one", Outcome: Failed},
		{Name: "Leaks", Outcome: Failed},
		{Name: "Leaks/inner", Outcome: Passed},
		{Name: "Lifecycle", Outcome: Passed},
		{Name: "OOM", Outcome: Skipped},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

func TestCheck(t *testing.T) {
	results := []Result{{"a", Passed, ""}, {"b", Failed, ""}, {"c", Skipped, ""}}
	reason := func(outcome Outcome, tests ...string) Reason {
		return Reason{Suite: "s", Outcome: outcome, Tests: tests, Why: "so"}
	}
	for _, c := range []struct {
		name     string
		reasons  []Reason
		complete bool
		wrong    string
	}{
		{"all have one", []Reason{reason(Failed, "b"), reason(Skipped, "c")}, true, ""},
		{"patterns", []Reason{reason(Failed, "[b]"), reason(Skipped, "c*")}, true, ""},
		{"none for a failure", []Reason{reason(Skipped, "c")}, true, "b failed"},
		{"of the wrong outcome", []Reason{reason(Skipped, "b", "c")}, true, "b failed"},
		{"for one that passes", []Reason{reason(Failed, "a", "b"), reason(Skipped, "c")}, true, "a passed"},
		{"for one that is not there", []Reason{reason(Failed, "b", "x"), reason(Skipped, "c")}, true, `"x"`},
		{"for one that was left out", []Reason{reason(Failed, "b", "x"), reason(Skipped, "c")}, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := (&Reasons{c.reasons}).Check("s", results, c.complete)
			if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
				t.Errorf("got %v, want %q in it", err, c.wrong)
			}
		})
	}
}

func TestReasonsFile(t *testing.T) {
	data, err := os.ReadFile("reasons.toml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseReasons(data); err != nil {
		t.Error(err)
	}
}

func TestSecondTry(t *testing.T) {
	reasons := &Reasons{Reason: []Reason{{Suite: "s", Outcome: Failed, Tests: []string{"known"}, Why: "w"}}}
	first := []Result{{"fine", Passed, ""}, {"known", Failed, "a"}, {"late", Failed, "b"}, {"left out", Skipped, "c"}}
	if got := reasons.Unexplained("s", first); !reflect.DeepEqual(got, []string{"late"}) {
		t.Errorf("%q are to be run once more", got)
	}
	merged := Merge(first, []Result{{"late", Passed, ""}, {"of another group", Passed, ""}})
	want := []Result{{"fine", Passed, ""}, {"known", Failed, "a"}, {"late", Passed, ""}, {"left out", Skipped, "c"}}
	if !reflect.DeepEqual(merged, want) || first[2].Outcome != Failed {
		t.Errorf("got %v of %v", merged, first)
	}
}
