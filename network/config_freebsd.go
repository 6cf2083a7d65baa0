package network

const stateDir = "/var/run/containerd-shim-bhyve/network"
