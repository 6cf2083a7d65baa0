// Package integration is the tests that use a real containerd, real virtual
// machines and real clients. They run in a lab, see package lab, and need root:
//
//	make integration
//	make integration TESTFLAGS='-run TestRuntime/bhyve/tty'
//
// Where runc can do a thing, the same test runs with it first: what a test
// expects is then what containerd's users are used to, not what this runtime
// happens to do. Each test ends with a look for anything left behind.
package integration
