package agentproto

import "path"

// What the containers of a machine share is at fixed paths in the guest. The
// network namespace is there from the start, and every container joins it: the
// link's interface is not in it. The others are made by the agent for the first
// bundle whose config.json names them, and stay until the machine ends.
const (
	SandboxNetNS = "/run/netns/sandbox"
	SandboxIPCNS = "/run/sandbox/ipc"
	SandboxUTSNS = "/run/sandbox/uts"
	// SandboxPIDNS has a process of the agent's as its first, which reaps.
	SandboxPIDNS = "/run/sandbox/pid"
	// SandboxShm is the /dev/shm of containers that share the IPC namespace.
	SandboxShm = "/run/sandbox/shm"
)

// SandboxFile is where the agent keeps a file that Pod.Configure or
// Network.Configure has brought, to be mounted into containers: "hosts".
func SandboxFile(name string) string { return path.Join("/run/sandbox/files", name) }

// LocalHosts are the lines that every hosts(5) of a container's begins with.
const LocalHosts = `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::	ip6-localnet
ff02::1	ip6-allnodes
ff02::2	ip6-allrouters
`

// SandboxCgroup is the parent of all containers' cgroups in the guest.
const SandboxCgroup = "/sandbox"
