package hypervisor

import (
	"errors"
	"fmt"
	"strings"
)

// ErrExited is returned by methods of a machine that has ended.
var ErrExited = errors.New("machine has exited")

// LaunchError is a machine that did not come up. It says in which phase, why,
// and what the guest last wrote to its console.
type LaunchError struct {
	ID string
	// Phase is what was being waited for: "start", "link", "agent".
	Phase string
	// Console is the end of the guest's console.
	Console []byte
	Err     error
}

// consoleLinesShown bounds the console lines in an error's text: enough for a
// panic's first frames, not so much that a log line is unreadable.
const consoleLinesShown = 20

func (e *LaunchError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "machine %s did not come up (phase %s): %v", e.ID, e.Phase, e.Err)
	lines := strings.FieldsFunc(string(e.Console), func(r rune) bool { return r == '\n' || r == '\r' })
	if len(lines) > consoleLinesShown {
		lines = lines[len(lines)-consoleLinesShown:]
	}
	if len(lines) == 0 {
		b.WriteString("; the guest's console is empty")
		return b.String()
	}
	b.WriteString("; the guest's console ends with:")
	for _, l := range lines {
		fmt.Fprintf(&b, "\n  %q", l)
	}
	return b.String()
}

func (e *LaunchError) Unwrap() error { return e.Err }
