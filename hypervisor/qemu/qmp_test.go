//go:build linux

package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

const goodDay = `{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": " (Debian)"}, "capabilities": []}}`

// fakeQEMU answers commands by a function; what it returns is sent as it is,
// a line each. The connection ends where it returns nil.
func fakeQEMU(t *testing.T, first string, answer func(command string, id uint64) []string) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { theirs.Close() })
	go func() {
		defer theirs.Close()
		fmt.Fprintf(theirs, "%s\r\n", first)
		for lines := bufio.NewScanner(theirs); lines.Scan(); {
			var c struct {
				Execute string
				ID      uint64
			}
			if json.Unmarshal(lines.Bytes(), &c) != nil {
				return
			}
			replies := answer(c.Execute, c.ID)
			if replies == nil {
				return
			}
			for _, r := range replies {
				fmt.Fprintf(theirs, "%s\r\n", r)
			}
		}
	}()
	return ours
}

func success(id uint64) string { return fmt.Sprintf(`{"return": {}, "id": %d}`, id) }

func open(t *testing.T, answer func(command string, id uint64) []string) *monitor {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := openMonitor(ctx, fakeQEMU(t, goodDay, answer))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func TestMonitorRepliesEventsAndRefusals(t *testing.T) {
	m := open(t, func(command string, id uint64) []string {
		switch command {
		case "query-status":
			return []string{
				`{"event": "RESUME", "data": {}}`,
				`{"return": {"running": false}, "id": 4711}`, // late, of someone who gave up
				fmt.Sprintf(`{"return": {"running": true}, "id": %d}`, id),
			}
		case "bad":
			return []string{fmt.Sprintf(`{"error": {"class": "GenericError", "desc": "no such thing"}, "id": %d}`, id)}
		case "quit":
			return []string{success(id), `{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}`}
		}
		return []string{success(id)}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if m.version != "7.2.22 (Debian)" {
		t.Errorf("version %q", m.version)
	}
	var status struct{ Running bool }
	if err := m.execute(ctx, "query-status", nil, &status); err != nil || !status.Running {
		t.Errorf("running %v, %v", status.Running, err)
	}
	var refused *monitorError
	if err := m.execute(ctx, "bad", nil, nil); !errors.As(err, &refused) || refused.Class != "GenericError" {
		t.Errorf("got %v, want QEMU's refusal", err)
	}
	if got := m.Shutdown(); got != "" {
		t.Errorf("shutdown %q before there was one", got)
	}
	if err := m.execute(ctx, "quit", nil, nil); err != nil {
		t.Error(err)
	}
	// Messages are dispatched in order: the reply to this one is after the event.
	if err := m.execute(ctx, "query-status", nil, nil); err != nil {
		t.Error(err)
	}
	if got := m.Shutdown(); got != "host-qmp-quit" {
		t.Errorf("shutdown %q", got)
	}
}

func TestMonitorThatEndsFailsCommands(t *testing.T) {
	for name, last := range map[string][]string{
		"closed":         nil,
		"not JSON":       {"{"},
		"endless":        {strings.Repeat("x", maxMessage+1)},
		"closed halfway": {`{"return": {}`},
	} {
		t.Run(name, func(t *testing.T) {
			m := open(t, func(command string, id uint64) []string {
				if command == "qmp_capabilities" {
					return []string{success(id)}
				}
				return last
			})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			for range 2 {
				if err := m.execute(ctx, "quit", nil, nil); !errors.Is(err, errMonitorClosed) {
					t.Errorf("got %v, want that the monitor is closed", err)
				}
			}
		})
	}
}

func TestMonitorCommandEndsWithItsContext(t *testing.T) {
	m := open(t, func(command string, id uint64) []string {
		if command == "qmp_capabilities" {
			return []string{success(id)}
		}
		return []string{}
	})
	gaveUp := errors.New("gave up")
	ctx, cancel := context.WithCancelCause(t.Context())
	const n = 3
	errs := make(chan error, n)
	for range n {
		go func() { errs <- m.execute(ctx, "hang", nil, nil) }()
	}
	cancel(gaveUp)
	for range n {
		select {
		case err := <-errs:
			if !errors.Is(err, gaveUp) {
				t.Errorf("got %v, want the context's cause", err)
			}
		case <-time.After(patience):
			t.Fatal("a command ignores its context")
		}
	}
}

func TestMonitorRefusesWhatDoesNotGreet(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := openMonitor(ctx, fakeQEMU(t, `{"hello": 1}`, nil)); err == nil || !strings.Contains(err.Error(), "greeting") {
		t.Errorf("got %v, want an error about the greeting", err)
	}
	silent, other := net.Pipe()
	defer other.Close()
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := openMonitor(ctx, silent); !errors.Is(err, context.Canceled) {
		t.Errorf("silent peer: %v, want cancelled", err)
	}
}
