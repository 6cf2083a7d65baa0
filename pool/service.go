package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
)

// Listen makes the daemon's socket, which root alone can connect to. It takes
// the place of one that a former daemon has left: whoever has opened the pool is
// the only one.
func Listen(path string) (net.Listener, error) {
	if err := removeFile(path); err != nil {
		return nil, fmt.Errorf("pool socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("pool socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("pool socket: %w", err)
	}
	return l, nil
}

// Serve answers calls on l until ctx ends, and then those that have begun.
func Serve(ctx context.Context, p *Pool, l net.Listener) error {
	server, err := ttrpc.NewServer(
		ttrpc.WithServerHandshaker(rootOnly()),
		ttrpc.WithUnaryServerInterceptor(func(ctx context.Context, u ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, m ttrpc.Method) (any, error) {
			resp, err := m(ctx, u)
			return resp, errgrpc.ToGRPC(err)
		}),
	)
	if err != nil {
		return err
	}
	poolv1.RegisterPoolService(server, &service{p})
	stop := context.AfterFunc(ctx, func() { server.Shutdown(context.WithoutCancel(ctx)) })
	defer stop()
	if err := server.Serve(ctx, l); err != nil && !errors.Is(err, ttrpc.ErrServerClosed) {
		return fmt.Errorf("serve the pool: %w", err)
	}
	return nil
}

// service translates calls. It decides nothing.
type service struct{ pool *Pool }

var _ poolv1.PoolService = (*service)(nil)

func processOf(m *poolv1.Process) proc.ID { return proc.ID{Pid: int(m.GetPid()), Start: m.GetStart()} }

func (s *service) Claim(ctx context.Context, r *poolv1.ClaimRequest) (*poolv1.ClaimResponse, error) {
	if r.Shape == nil {
		return nil, fmt.Errorf("claim: no shape: %w", errdefs.ErrInvalidArgument)
	}
	offer, err := s.pool.Claim(ctx, Want{
		Shape: r.Shape, Template: r.Template, Claimant: processOf(r.Claimant), Boot: r.Boot,
	})
	if err != nil {
		return nil, err
	}
	machine, err := json.Marshal(offer.Machine)
	if err != nil {
		return nil, err
	}
	return &poolv1.ClaimResponse{
		Entry: offer.Entry, Template: offer.Template, Tier: offer.Tier, Machine: machine,
		Parked: offer.Parked, Age: durationpb.New(offer.Age),
	}, nil
}

func (s *service) Confirm(ctx context.Context, r *poolv1.EntryRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.pool.Confirm(ctx, r.Entry, processOf(r.Claimant))
}

func (s *service) Abandon(ctx context.Context, r *poolv1.EntryRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.pool.Abandon(ctx, r.Entry, processOf(r.Claimant))
}

func (s *service) AddTemplate(ctx context.Context, r *poolv1.AddTemplateRequest) (*poolv1.Template, error) {
	t, err := s.pool.AddTemplate(ctx, templateOf(r.Template))
	if err != nil {
		return nil, err
	}
	return t.proto(), nil
}

func (s *service) RemoveTemplate(ctx context.Context, r *poolv1.TemplateRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.pool.RemoveTemplate(ctx, r.Name)
}

func (s *service) Warm(ctx context.Context, r *poolv1.WarmRequest, stream poolv1.Pool_WarmServer) error {
	return errgrpc.ToGRPC(s.pool.Warm(ctx, r.Name, int(r.Hot), func(made Progress) error {
		return stream.Send(&poolv1.Progress{Done: uint32(made.Done), Total: uint32(made.Total)})
	}))
}

func (s *service) Checkpoint(ctx context.Context, r *poolv1.TemplateRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.pool.Checkpoint(ctx, r.Name)
}

func (s *service) Evict(ctx context.Context, r *poolv1.EvictRequest) (*poolv1.EvictResponse, error) {
	hot, cold, err := s.pool.Evict(ctx, r.Template, int(r.Hot), r.Cold)
	return &poolv1.EvictResponse{Hot: uint32(hot), Cold: uint32(cold)}, err
}

func (s *service) Drain(ctx context.Context, _ *emptypb.Empty) (*poolv1.EvictResponse, error) {
	hot, err := s.pool.Drain(ctx)
	return &poolv1.EvictResponse{Hot: uint32(hot)}, err
}

func (s *service) Resume(context.Context, *emptypb.Empty) (*emptypb.Empty, error) {
	s.pool.Resume()
	return &emptypb.Empty{}, nil
}

func (s *service) Status(context.Context, *emptypb.Empty) (*poolv1.StatusResponse, error) {
	return s.pool.Status()
}

func (s *service) Check(ctx context.Context, _ *emptypb.Empty) (*poolv1.Findings, error) {
	found, err := s.pool.Check(ctx)
	return findingsOf(found), err
}

func (s *service) GC(ctx context.Context, _ *emptypb.Empty) (*poolv1.Findings, error) {
	gone, err := s.pool.GC(ctx)
	return findingsOf(gone), err
}

func findingsOf(list []Finding) *poolv1.Findings {
	m := &poolv1.Findings{}
	for _, f := range list {
		m.Lines = append(m.Lines, f.String())
		m.Findings = append(m.Findings, &poolv1.Finding{Kind: f.Kind, Name: f.Name, Why: f.Why})
	}
	return m
}
