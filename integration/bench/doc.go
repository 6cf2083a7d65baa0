// Package bench measures how long a container takes to start and a command to
// run in it, for this runtime and for runc through the same containerd in the
// same run: the ratio says more than the figures of one machine on one day.
//
// The clocks are those of the project's design; all start when the client asks
// for the task, except a to c, which the shim starts when that request reaches
// it:
//
//	a  the machine is owned: with no pool there is none to claim, and the clock
//	   is absent
//	b  the machine runs: its virtual CPUs have started
//	c  the agent has answered
//	d  Task.Start has returned; and the first byte of output has arrived
//
// Each sample carries its proof: what the process that was started read of its
// own kernel.
package bench
