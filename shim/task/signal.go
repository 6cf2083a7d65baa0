package task

// freebsdSignals are the signals whose numbers differ between FreeBSD
// (sys/signal.h) and Linux (asm/signal.h, x86), with Linux's. Those that Linux
// has not, SIGEMT and SIGINFO, are not in it.
var freebsdSignals = map[uint32]uint32{
	10: 7,  // SIGBUS
	12: 31, // SIGSYS
	16: 23, // SIGURG
	17: 19, // SIGSTOP
	18: 20, // SIGTSTP
	19: 18, // SIGCONT
	20: 17, // SIGCHLD
	23: 29, // SIGIO
	30: 10, // SIGUSR1
	31: 12, // SIGUSR2
}

// guestSignal is a signal's number in the guest, which is always Linux. Clients
// use the numbers of the host that they run on, also for signals that they only
// forward: ctr passes on the SIGURG with which its own Go runtime wakes threads.
func guestSignal(hostOS string, signal uint32) uint32 {
	if n, ok := freebsdSignals[signal]; ok && hostOS == "freebsd" {
		return n
	}
	return signal
}
