// Package agentproto is what host and guest agree on: the agent's services
// (package v1, generated from v1/agent.proto), the ports they are reached at,
// the addresses of the link, the preface that opens a data stream, and the
// guest's directory layout as far as the host has to name it.
//
// It is the only package of this module that both the host side and the agent
// import, and it imports neither.
package agentproto

//go:generate sh ../hack/generate.sh
