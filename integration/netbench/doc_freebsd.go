// Package netbench measures package network, on Linux.
package netbench
