package bhyve

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/vmmapi"
)

// namePrefix tells this project's virtual machines from everyone else's in
// /dev/vmm: what has it and has no owner is a left-over, and may be destroyed.
const namePrefix = "csb-"

// hashLength is the characters of a hash that stand for the rest of an id.
const hashLength = 16

// vmName is the name of the virtual machine of a machine. Ids may be longer
// than such a name; then it ends in a hash of the whole id.
func vmName(id string) string {
	name := namePrefix + id
	if len(name) <= vmmapi.MaxNameLength {
		return name
	}
	sum := sha256.Sum256([]byte(id))
	return name[:vmmapi.MaxNameLength-hashLength-1] + "." + hex.EncodeToString(sum[:])[:hashLength]
}

// isOurs says whether a virtual machine was named by vmName.
func isOurs(vmName string) bool {
	return len(vmName) > len(namePrefix) && strings.HasPrefix(vmName, namePrefix)
}
