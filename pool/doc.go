// Package pool keeps machines ready before anybody asks for one, and hands each
// out once. It knows machines and their agents, and nothing of containers.
//
// What waits is in tiers. A hot machine has booted, its agent has answered, and
// its process is stopped; a cold one is a checkpoint on disk, of which any
// number can be made. A claim takes from the hot tier, else restores from the
// cold one, else boots, and says which it was.
//
// # Whose a machine is
//
// A machine is the pool's from before its process exists until a claimant has
// confirmed that it has adopted it. An entry is the pool's record of it, on
// disk before the fact:
//
//	making  -> hot -> offered -> given
//	   `---------------^
//
// making is written before anything is taken from the host, hot once the
// process table has shown the machine stopped, offered (to one process, by pid
// and start time) before the claimant hears of it, given before the pool strikes
// out its own receipts. So at each point at which the daemon may be killed, the
// next one knows what to do: what was being made is undone, what is hot is
// adopted, what is offered is the claimant's to confirm or, if that has died,
// undone, and what is given is left alone. A machine never goes back: whoever
// is offered one and does not take it costs the pool a machine.
//
// Entries live in a directory that need not survive a reboot, as machines do
// not. Templates and checkpoints do.
package pool
