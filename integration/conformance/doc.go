// Package conformance judges the results of test suites that others wrote, and
// writes docs/conformance.md from them.
//
// What does not pass has to have a reason in reasons.toml, and what has a reason
// must not pass: neither the document nor the reasons can drift from what the
// suites say.
package conformance
