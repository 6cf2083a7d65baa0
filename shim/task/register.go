package task

import (
	"github.com/containerd/ttrpc"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/edge"
)

// The service's names: taskV2 is that for a containerd before 2.0. Its messages
// are those of v3, field by field (api/runtime/task/v2/shim.proto), so one
// implementation serves both names.
const (
	taskV3 = "containerd.task.v3.Task"
	taskV2 = "containerd.task.v2.Task"
)

// RegisterTTRPC registers the service under both of its names.
func (s *Service) RegisterTTRPC(server *ttrpc.Server) error {
	methods := map[string]ttrpc.Method{
		"State":      edge.Method(s.State),
		"Create":     edge.Method(s.Create),
		"Start":      edge.Method(s.Start),
		"Delete":     edge.Method(s.Delete),
		"Pids":       edge.Method(s.Pids),
		"Pause":      edge.Method(s.Pause),
		"Resume":     edge.Method(s.Resume),
		"Checkpoint": edge.Method(s.Checkpoint),
		"Kill":       edge.Method(s.Kill),
		"Exec":       edge.Method(s.Exec),
		"ResizePty":  edge.Method(s.ResizePty),
		"CloseIO":    edge.Method(s.CloseIO),
		"Update":     edge.Method(s.Update),
		"Wait":       edge.Method(s.Wait),
		"Stats":      edge.Method(s.Stats),
		"Connect":    edge.Method(s.Connect),
		"Shutdown":   edge.Method(s.Shutdown),
	}
	for _, name := range []string{taskV3, taskV2} {
		server.RegisterService(name, &ttrpc.ServiceDesc{Methods: methods})
	}
	return nil
}
