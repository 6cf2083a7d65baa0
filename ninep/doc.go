// Package ninep serves a host directory, or a single host file, to a guest
// kernel's v9fs client as 9P2000.L.
//
// The client is not trusted. Files are known by descriptors that give no access
// to their content (O_PATH), and everything is reached from there: a walk opens
// one component at a time and never follows a symbolic link, opening for I/O
// reopens the file's own descriptor, and no host path is ever built from what
// the client sent. Special files can be created,
// renamed and removed, but never opened: their meaning belongs to the guest's
// kernel. What one session can hold (descriptors, memory, requests in flight)
// is bounded, and a malformed message ends it.
//
// Permission checks are the guest kernel's task (access=client): the server
// acts with the shim's privileges inside the tree, and uses the uid that a fid
// was attached with to give new files to the right owner.
//
// The protocol is described by Linux's include/net/9p/9p.h and net/9p/client.c,
// and by https://github.com/chaos/diod/blob/master/protocol.md; sections of the
// latter are what comments here call "the protocol description".
package ninep
