package network

const stateDir = "/run/containerd-shim-bhyve/network"
