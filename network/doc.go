// Package network gives sandboxes an address: a tap that is a private member of
// a bridge, and the policy that everything on it has to pass (package policy).
// It knows nothing of containers: it is asked for a network by id, and gives it
// back by id.
//
// There are four verbs, as in CNI, and each may be called again, by any number of
// processes at a time, and after any of them was killed at any point:
//
//   - Add makes what is missing of a sandbox's network and returns it.
//   - Del removes what is there of it.
//   - Check compares the host with the record.
//   - GC removes what no record owns.
//
// # Records
//
// The state directory has one directory a sandbox, which is locked (flock(2)) by
// the verb that works on it, and in it the record, written before anything is
// made of what it names. An address is taken by making a symbolic link with the
// address as its name and the sandbox's id as its target, which the file system
// does at once or not at all; it is given back last. Neither needs a lock that
// all share. Nothing of it survives a restart of the host, as taps and rules do
// not: the directory belongs on a file system of /run's kind.
package network
