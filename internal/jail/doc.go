// Package jail makes FreeBSD's nearest to a network namespace: a jail with a network
// stack of its own (VNET) and the host's files. Tests and benchmarks are its users.
package jail
