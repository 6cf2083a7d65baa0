// Package lab is a private world with a real containerd in it, for the tests,
// for `make run` and for `make bench`.
//
// A program that calls Enter is started again in a network, mount, PID and IPC
// namespace of its own: no interface of the machine can be seen from there, no
// packet leaves it, and when the program ends, however it ends, the kernel ends
// everything in it. What the kernel cannot take back, a directory and empty
// cgroups, is removed by the process that stayed outside, or by the next lab if
// that one was killed too.
//
// Inside, Start brings up a stock containerd whose PATH leads to this
// repository's shim, and Lab.Leaks says what a test has left behind.
//
// On FreeBSD, where taps and virtual machines are the whole host's, the world is
// the host itself: one that was made for tests. See docs/freebsd.md.
package lab
