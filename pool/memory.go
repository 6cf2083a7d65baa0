package pool

import "fmt"

// Memory is the host's, in bytes.
type Memory struct {
	Total uint64
	// Available is what new processes could get without anything being swapped.
	Available uint64
}

// admission decides what may still be started. It is guarded by Pool.mu.
type admission struct {
	read    func() (Memory, error)
	reserve uint64
	// promised is what machines that are being made may take. Once made, what they
	// have taken shows in Available.
	promised uint64
}

// take promises bytes to a machine, or says why not. The error of a refusal is
// a *shortage.
func (a *admission) take(bytes uint64) error {
	m, err := a.read()
	if err != nil {
		return err
	}
	if m.Available < a.reserve+a.promised+bytes {
		return &shortage{available: m.Available, promised: a.promised, reserve: a.reserve, wanted: bytes}
	}
	a.promised += bytes
	return nil
}

func (a *admission) done(bytes uint64) { a.promised -= bytes }

// pressed says whether the host has less left than the reserve.
func (a *admission) pressed() bool {
	m, err := a.read()
	return err == nil && m.Available < a.reserve
}

// shortage is memory that is not there.
type shortage struct{ available, promised, reserve, wanted uint64 }

func (s *shortage) Error() string {
	const mib = 1 << 20
	return fmt.Sprintf("no memory for another machine: %d MiB wanted, %d available, of which %d are promised and %d are the host's reserve",
		s.wanted/mib, s.available/mib, s.promised/mib, s.reserve/mib)
}
