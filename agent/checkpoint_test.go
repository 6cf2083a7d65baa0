//go:build linux

package agent

import (
	"context"
	"errors"
	"testing"
)

// A Resume waits for a Suspend that its host has given up, and undoes what that
// comes to.
func TestResumeWaitsForSuspend(t *testing.T) {
	c := newCheckpoints(&mountTable{}, nil, t.TempDir())
	end, err := c.begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Resume(gone, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("resumed in the middle of another request: %v", err)
	}
	resumed := make(chan error)
	go func() {
		_, err := c.Resume(t.Context(), nil)
		resumed <- err
	}()
	undone := false
	c.undo = append(c.undo, func() error { undone = true; return nil })
	end()
	if err := <-resumed; err != nil || !undone || c.undo != nil {
		t.Errorf("what Suspend has done was undone: %t, %v", undone, err)
	}
}
