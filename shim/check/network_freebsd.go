package check

import (
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/command"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
)

func hostNetwork(cfg network.Config) []item {
	return []item{pfRules(command.New(10*time.Second, 1).Run, cfg.Bridge)}
}
