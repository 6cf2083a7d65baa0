// Package bench measures how long a container takes to start and a command to
// run in it, for this runtime and for runc through the same containerd in the
// same run: the ratio says more than the figures of one machine on one day.
//
// A container's machine comes from one of the tiers of the table:
//
//	boot-full        it is booted for the container
//	boot-minimal     the same, with a kernel that has only what a guest needs
//	prewarm          it was booted before, and has been stopped since
//	durable          it is restored from a checkpoint on disk
//	durable-prewarm  it was restored before, and has been stopped since
//	durable-rehearsed  the same, and before that it ran a container that does nothing
//
// The clocks are those of the project's design; all start when the client asks
// for the task, except a to c, which the shim starts when that request reaches
// it:
//
//	a  the machine is owned: taken out of the pool, and adopted
//	b  the machine runs: its virtual CPUs have started
//	c  the agent has answered, and thereafter: it has thawed the machine
//	d  Task.Start has returned; and the first byte of output has arrived
//
// Each sample carries its proof: what the process that was started read of its
// own kernel, and what the shim said of the machine. A sample whose proof does
// not show the tier that it is counted under ends the run.
package bench
