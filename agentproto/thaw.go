package agentproto

// MinEntropy is how many bytes of entropy a thaw brings at least: as much as
// the kernel's generator has of state that matters, its key of 256 bits.
const MinEntropy = 32
