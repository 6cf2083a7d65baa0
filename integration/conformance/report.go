package conformance

import (
	"fmt"
	"io"
	"strings"
)

// Run is one run of one suite.
type Run struct {
	// Suite is what the reasons call it.
	Suite string
	// Title and Version are for people.
	Title, Version string
	// About says what was run, in Markdown.
	About   string
	Results []Result
}

// Count is the number of results with an outcome.
func (r Run) Count(o Outcome) (n int) {
	for _, result := range r.Results {
		if result.Outcome == o {
			n++
		}
	}
	return n
}

const heading = `# Conformance

Suites that nobody here wrote, run unchanged against ` + "`io.containerd.bhyve.v2`" + ` with
the QEMU backend, and what does not pass, with the reason. ` + "`make conformance`" + `
runs them and writes this file; ` + "`make test`" + ` runs them and fails if the outcome
is another than is written here. A test that fails without a reason is run once
more by itself, and that counts: some have timeouts that a busy host breaks.

| suite | version | passed | failed | skipped |
|---|---|--:|--:|--:|
`

// Write writes the document. It has no times in it: the same outcomes give the
// same bytes.
func Write(w io.Writer, runs []Run, reasons *Reasons) error {
	var b strings.Builder
	b.WriteString(heading)
	for _, r := range runs {
		fmt.Fprintf(&b, "| [%s](#%s) | %s | %d | %d | %d |\n",
			r.Title, anchor(r.Title), r.Version, r.Count(Passed), r.Count(Failed), r.Count(Skipped))
	}
	for _, r := range runs {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", r.Title, strings.TrimSpace(r.About))
		for _, part := range []struct {
			outcome Outcome
			title   string
		}{{Failed, "Failures"}, {Skipped, "Skips"}} {
			writePart(&b, part.title, part.outcome, r, reasons)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func writePart(b *strings.Builder, title string, outcome Outcome, r Run, reasons *Reasons) {
	if r.Count(outcome) == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s of %s:\n\n| test | reason |\n|---|---|\n", title, r.Title)
	for _, result := range r.Results {
		if result.Outcome != outcome {
			continue
		}
		why := "**none given**"
		if reason, ok := reasons.why(r.Suite, result); ok {
			why = reason.Why
		}
		fmt.Fprintf(b, "| %s | %s |\n", cell(result.Name), cell(why))
	}
}

func cell(s string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "|", `\|`)
}

// anchor is the fragment that a heading gets on common renderers.
func anchor(title string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ' || r == '-':
			return '-'
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			return r
		default:
			return -1
		}
	}, strings.ToLower(title))
}
