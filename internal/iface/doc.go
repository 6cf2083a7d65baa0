// Package iface makes ioctls of FreeBSD's network interfaces (netintro(4)), where
// ifconfig(8) would do something else or take a program's start.
package iface
