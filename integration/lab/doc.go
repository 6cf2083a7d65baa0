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
// It is for Linux: FreeBSD has jails for the purpose, and a lab of its own
// beside this one when the bhyve backend has a body.
package lab
