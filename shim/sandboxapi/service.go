// Package sandboxapi is the RPC edge of the shim beside package task:
// containerd's Sandbox service, request by request translated into calls on the
// sandbox. Nothing is decided here.
package sandboxapi

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"time"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/edge"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/pod"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/sandbox"
)

// Service implements containerd's Sandbox service for one sandbox.
//
// The pid is that of the machine's process on the host. CRI writes it into the
// paths of namespaces in its containers' specs, which package bundle turns into
// those of the pod in the guest.
type Service struct {
	sandbox *sandbox.Sandbox
	// exit ends the shim's process.
	exit func()
}

// shutdownTimeout bounds ShutdownSandbox. What takes longer is given up, and
// left to `delete`.
const shutdownTimeout = 15 * time.Second

// linger is how long the connection outlives the answer to ShutdownSandbox. A
// client that learns of both at once takes one of them by chance (ttrpc's
// client.go), and containerd insists on this answer.
const linger = 250 * time.Millisecond

var _ api.TTRPCSandboxService = (*Service)(nil)

// New returns the service for s. exit is called when a ShutdownSandbox has been
// answered.
func New(s *sandbox.Sandbox, exit func()) *Service { return &Service{sandbox: s, exit: exit} }

// serviceName is the service's, of api/runtime/sandbox/v1/sandbox.proto.
const serviceName = "containerd.runtime.sandbox.v1.Sandbox"

// RegisterTTRPC registers the service.
func (s *Service) RegisterTTRPC(server *ttrpc.Server) error {
	server.RegisterService(serviceName, &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"CreateSandbox":   edge.Method(s.CreateSandbox),
		"StartSandbox":    edge.Method(s.StartSandbox),
		"Platform":        edge.Method(s.Platform),
		"StopSandbox":     edge.Method(s.StopSandbox),
		"WaitSandbox":     edge.Method(s.WaitSandbox),
		"SandboxStatus":   edge.Method(s.SandboxStatus),
		"PingSandbox":     edge.Method(s.PingSandbox),
		"ShutdownSandbox": edge.Method(s.ShutdownSandbox),
		"SandboxMetrics":  edge.Method(s.SandboxMetrics),
		"UpdateSandbox":   edge.Method(s.UpdateSandbox),
	}})
	return nil
}

// CreateSandbox takes note of the sandbox that is wanted, and checks it.
func (s *Service) CreateSandbox(ctx context.Context, r *api.CreateSandboxRequest) (*api.CreateSandboxResponse, error) {
	if len(r.Rootfs) > 0 {
		return nil, edge.Error(ctx, "create sandbox", fmt.Errorf("a root filesystem for the sandbox itself: %w", errdefs.ErrNotImplemented))
	}
	options, err := config.SavedOptions(r.BundlePath)
	if err != nil {
		return nil, edge.Error(ctx, "create sandbox", err)
	}
	cfg, err := config.FromOptions(options)
	if err != nil {
		return nil, edge.Error(ctx, "create sandbox", err)
	}
	p, err := pod.New(pod.Request{
		ID: r.SandboxID, Bundle: r.BundlePath, NetNS: r.NetnsPath, Options: r.Options, Annotations: r.Annotations,
	})
	if err == nil {
		err = s.sandbox.Declare(p, cfg)
	}
	return &api.CreateSandboxResponse{}, edge.Error(ctx, "create sandbox", err)
}

// StartSandbox boots the sandbox's machine.
func (s *Service) StartSandbox(ctx context.Context, r *api.StartSandboxRequest) (*api.StartSandboxResponse, error) {
	if err := s.sandbox.StartDeclared(ctx, r.SandboxID); err != nil {
		return nil, edge.Error(ctx, "start sandbox", err)
	}
	st, err := s.sandbox.Status(r.SandboxID)
	if err != nil {
		return nil, edge.Error(ctx, "start sandbox", err)
	}
	return &api.StartSandboxResponse{Pid: st.Pid, CreatedAt: timestamp(st.Created)}, nil
}

// Platform is that of the guest, whatever the host's system: containerd writes
// specs for it. The processor is the host's.
func (s *Service) Platform(context.Context, *api.PlatformRequest) (*api.PlatformResponse, error) {
	return &api.PlatformResponse{Platform: &types.Platform{OS: "linux", Architecture: runtime.GOARCH}}, nil
}

// StopSandbox ends the machine. The shim stays, to answer for what was in it.
func (s *Service) StopSandbox(ctx context.Context, r *api.StopSandboxRequest) (*api.StopSandboxResponse, error) {
	err := s.sandbox.Stop(ctx, r.SandboxID, time.Duration(r.TimeoutSecs)*time.Second)
	return &api.StopSandboxResponse{}, edge.Error(ctx, "stop sandbox", err)
}

// WaitSandbox returns when the machine has ended.
func (s *Service) WaitSandbox(ctx context.Context, r *api.WaitSandboxRequest) (*api.WaitSandboxResponse, error) {
	exit, err := s.sandbox.WaitEnd(ctx, r.SandboxID)
	if err != nil {
		return nil, edge.Error(ctx, "wait sandbox", err)
	}
	return &api.WaitSandboxResponse{ExitStatus: exit.Status, ExitedAt: timestamp(exit.At)}, nil
}

// The states that CRI knows, by the names of its enumeration PodSandboxState.
const (
	stateReady    = "SANDBOX_READY"
	stateNotReady = "SANDBOX_NOTREADY"
)

// SandboxStatus describes the sandbox.
func (s *Service) SandboxStatus(ctx context.Context, r *api.SandboxStatusRequest) (*api.SandboxStatusResponse, error) {
	st, err := s.sandbox.Status(r.SandboxID)
	if err != nil {
		return nil, edge.Error(ctx, "sandbox status", err)
	}
	resp := &api.SandboxStatusResponse{
		SandboxID: r.SandboxID,
		Pid:       st.Pid,
		State:     stateNotReady,
		CreatedAt: timestamp(st.Created),
		ExitedAt:  timestamp(st.Exit.At),
	}
	if st.Ready {
		resp.State = stateReady
	}
	if r.Verbose {
		resp.Info = map[string]string{
			"pid":                strconv.Itoa(int(st.Pid)),
			"state":              resp.State,
			"machine":            st.Machine,
			"networkSandboxPath": st.NetNS,
		}
	}
	return resp, nil
}

// PingSandbox succeeds when the guest has answered.
func (s *Service) PingSandbox(ctx context.Context, r *api.PingRequest) (*api.PingResponse, error) {
	return &api.PingResponse{}, edge.Error(ctx, "ping sandbox", s.sandbox.Ping(ctx, r.SandboxID))
}

// SandboxMetrics are the metrics of all containers together.
func (s *Service) SandboxMetrics(ctx context.Context, r *api.SandboxMetricsRequest) (*api.SandboxMetricsResponse, error) {
	metrics, err := s.sandbox.Metrics(ctx, r.SandboxID)
	if err != nil {
		return nil, edge.Error(ctx, "sandbox metrics", err)
	}
	data, err := typeurl.MarshalAnyToProto(metrics)
	if err != nil {
		return nil, edge.Error(ctx, "sandbox metrics", err)
	}
	return &api.SandboxMetricsResponse{Metrics: &types.Metric{
		Timestamp: timestamppb.Now(), ID: r.SandboxID, Data: data,
	}}, nil
}

// UpdateSandbox is optional, and a machine cannot change its size.
func (s *Service) UpdateSandbox(ctx context.Context, _ *api.UpdateSandboxRequest) (*api.UpdateSandboxResponse, error) {
	return nil, edge.Error(ctx, "update sandbox", errdefs.ErrNotImplemented)
}

// ShutdownSandbox ends everything, and then the shim: also one whose sandbox was
// never created, as containerd asks for after a CreateSandbox that failed.
func (s *Service) ShutdownSandbox(ctx context.Context, _ *api.ShutdownSandboxRequest) (*api.ShutdownSandboxResponse, error) {
	// A request's context ends when its answer has been handed over (ttrpc's
	// services.go).
	context.AfterFunc(ctx, func() { time.AfterFunc(linger, s.exit) })
	ctx, cancel := context.WithTimeout(ctx, shutdownTimeout)
	defer cancel()
	return &api.ShutdownSandboxResponse{}, edge.Error(ctx, "shutdown sandbox", s.sandbox.Close(ctx))
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
