package sandbox

import (
	"context"
	"errors"
	"testing"
)

func TestGate(t *testing.T) {
	var g gate
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	must(t, g.enter(t.Context()))
	if err := g.close(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("closed with somebody inside: %v", err)
	}
	// Who gave up has left it open.
	must(t, g.enter(gone))
	g.leave()

	closed := make(chan error)
	go func() { closed <- g.close(t.Context()) }()
	g.leave()
	must(t, <-closed)
	if err := g.enter(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("entered a shut gate: %v", err)
	}
	if err := g.close(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("closed by two: %v", err)
	}
	entered := make(chan error)
	go func() { entered <- g.enter(t.Context()) }()
	g.open()
	must(t, <-entered)
	g.leave()
}
