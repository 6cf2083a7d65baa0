package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/log"
)

// watchMachine waits for the machine's end, expected or not, and makes it the
// end of everything in it.
func (s *Sandbox) watchMachine(v *vm) {
	<-v.Done()
	exit := v.Exit()

	s.mu.Lock()
	expected := s.state != stateRunning
	s.state = stateStopped
	containers := s.readyContainers()
	s.end(expected, exit.At)
	s.mu.Unlock()

	l := log.G(s.ctx).WithFields(log.Fields{"machine": v.ID(), "reason": string(exit.Reason), "detail": exit.Detail})
	if expected {
		l.Debug("machine has ended")
	} else {
		l.WithField("console", string(tail(v.ConsoleTail(), 2048))).Error("machine died under its containers")
	}
	// Whoever waits for an answer of the agent gets an error now.
	v.agent.close()
	for _, c := range containers {
		c.machineDied(exit.At)
	}
}

// readyContainers are those whose Create has succeeded: that of another fails by
// itself. The caller holds mu.
func (s *Sandbox) readyContainers() []*Container {
	var ready []*Container
	for _, c := range s.containers {
		if c.ready {
			ready = append(ready, c)
		}
	}
	return ready
}

// end makes the sandbox's exit final. The caller holds mu.
func (s *Sandbox) end(expected bool, at time.Time) {
	select {
	case <-s.ended:
		return
	default:
	}
	s.exit = Exit{At: at}
	if !expected {
		s.exit.Status = exitStatusKilled
	}
	if s.declared != nil {
		s.declared.netns.release()
	}
	close(s.ended)
}

func tail(b []byte, n int) []byte {
	return b[max(0, len(b)-n):]
}

// errClosing is why a boot was given up.
var errClosing = fmt.Errorf("the sandbox is being closed: %w", context.Canceled)

// beginStop moves to stateStopping, in which nothing begins, and gives up a boot
// that is under way: its machine is destroyed or not there once the result, if
// there is one, is closed. The caller holds mu.
func (s *Sandbox) beginStop() (booted <-chan struct{}) {
	if s.state == stateCreating {
		booted = s.booted
		s.stopBoot(errClosing)
	}
	if s.state < stateStopping {
		s.state = stateStopping
	}
	return booted
}

// Shutdown ends the machine if no container is left and the Sandbox API has not
// made the sandbox, and reports whether it did. The guest is asked to power off
// first; a guest that does not is ended by force.
//
// A container that is still being created does not count: containerd asks
// after it has given up on it, and does not ask again.
func (s *Sandbox) Shutdown(ctx context.Context) (bool, error) {
	s.mu.Lock()
	if s.declared != nil || len(s.readyContainers()) > 0 {
		s.mu.Unlock()
		return false, nil
	}
	booted := s.beginStop()
	s.mu.Unlock()
	return true, s.stop(ctx, booted, 0)
}

// Close ends everything, containers included. It is for a shim that must go,
// whatever runs.
func (s *Sandbox) Close(ctx context.Context) error {
	s.mu.Lock()
	booted := s.beginStop()
	containers := make([]*Container, 0, len(s.containers))
	for _, c := range s.containers {
		containers = append(containers, c)
	}
	s.mu.Unlock()

	errs := []error{s.stop(ctx, booted, 0)}
	for _, c := range containers {
		errs = append(errs, c.release(ctx))
	}
	errs = append(errs, s.leaveHome(ctx))
	for _, c := range containers {
		c.awaitExit(ctx)
	}
	errs = append(errs, s.events.close(ctx))
	return errors.Join(errs...)
}

// stop ends the machine, after the end of a boot that beginStop has given up. Its
// processes have grace to end by themselves.
func (s *Sandbox) stop(ctx context.Context, booted <-chan struct{}, grace time.Duration) error {
	if booted != nil {
		select {
		case <-booted:
		case <-ctx.Done():
		}
	}
	s.mu.Lock()
	v := s.vm
	if v == nil {
		s.end(true, time.Now())
	}
	s.mu.Unlock()
	if v == nil {
		return nil
	}
	s.logUsage(ctx)
	v.powerOff(ctx, grace)
	return v.destroy(ctx)
}

// leaveHome is the end of all that the sandbox keeps on the host for itself.
func (s *Sandbox) leaveHome(ctx context.Context) error {
	s.mu.Lock()
	h := s.home
	s.home = nil
	s.mu.Unlock()
	if h == nil {
		return nil
	}
	return h.close(ctx)
}
