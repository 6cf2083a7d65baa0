// Package client is the pool's daemon as the shim and the command line use it.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/steps"
	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// Client is a connection to a daemon. Calls of the embedded service return
// errdefs kinds. It is safe for concurrent use.
type Client struct {
	poolv1.PoolClient
	conn *ttrpc.Client
}

// Dial connects to the daemon at the socket path. The error is
// errdefs.ErrUnavailable if none serves there.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("pool daemon: %w: %w", err, errdefs.ErrUnavailable)
	}
	c := ttrpc.NewClient(conn, ttrpc.WithUnaryClientInterceptor(nativeErrors))
	return &Client{PoolClient: poolv1.NewPoolClient(c), conn: c}, nil
}

func nativeErrors(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, info *ttrpc.UnaryClientInfo, call ttrpc.Invoker) error {
	err := call(ctx, req, resp)
	if errors.Is(err, ttrpc.ErrClosed) {
		return fmt.Errorf("pool daemon: %w: %w", err, errdefs.ErrUnavailable)
	}
	// ttrpc itself looks at the answer's status only after this.
	if err == nil && resp.Status.GetCode() != 0 {
		err = status.ErrorProto(resp.Status)
	}
	return errgrpc.ToNative(err)
}

// Warm has the daemon make machines until hot of them wait, and tells of each.
// It shadows the service's, whose stream has no errdefs kinds.
func (c *Client) Warm(ctx context.Context, name string, hot int, tell func(done, total int)) error {
	stream, err := c.PoolClient.Warm(ctx, &poolv1.WarmRequest{Name: name, Hot: uint32(hot)})
	if err != nil {
		return errgrpc.ToNative(err)
	}
	for {
		made, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errgrpc.ToNative(err)
		}
		tell(int(made.Done), int(made.Total))
	}
}

// Close hangs up.
func (c *Client) Close() error { return c.conn.Close() }

// Want is the machine that is to be claimed.
type Want struct {
	Shape *poolv1.Shape
	// Template, if set, is the only one that will do.
	Template string
	// Boot has the daemon boot a machine if no tier has one.
	Boot bool
}

// Claimed is a machine that is the caller's alone.
type Claimed struct {
	// Machine runs, and its guest has not been spoken to since it was parked or
	// restored: its clock is behind, and its entropy and identity may be those of
	// others, until it is thawed.
	hypervisor.Machine
	// Template and Tier say where it came from.
	Template string
	Tier     poolv1.Tier
	// Age is for how long it had been ready.
	Age time.Duration
	// Owned and Running are when the machine had changed hands and when its
	// processors ran, since the claim began.
	Owned, Running time.Duration
}

const (
	// claimTimeout bounds a claim that needs no boot. What takes longer than a
	// boot is no help.
	claimTimeout = 30 * time.Second
	// attempts is how many machines are tried of those that turn out to be dead.
	attempts = 3
	// giveUpTimeout bounds what is done after a claim that failed.
	giveUpTimeout = 15 * time.Second
)

// Claim takes a machine out of the pool, makes it this process's own with
// receipts in book, and has it run. On error there is none: what had been
// adopted is destroyed.
//
// Errors beside those of the service: errdefs.ErrUnavailable if the daemon ends
// or does not answer, errdefs.ErrNotImplemented if backend cannot adopt. None of
// them keeps the caller from booting a machine by itself.
func (c *Client) Claim(ctx context.Context, want Want, backend hypervisor.Backend, book *receipt.Book) (*Claimed, error) {
	adopter, ok := backend.(hypervisor.Adopter)
	if !ok {
		return nil, fmt.Errorf("claim a machine of %s: %w", backend.Name(), errdefs.ErrNotImplemented)
	}
	self, err := proc.Identify(os.Getpid())
	if err != nil {
		return nil, err
	}
	claimant := &poolv1.Process{Pid: int64(self.Pid), Start: self.Start}
	if !want.Boot {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, claimTimeout,
			fmt.Errorf("the pool took longer than %s: %w", claimTimeout, errdefs.ErrUnavailable))
		defer cancel()
	}
	for attempt := 1; ; attempt++ {
		began := time.Now()
		end := steps.Begin(ctx, "claim")
		offer, err := c.PoolClient.Claim(ctx, &poolv1.ClaimRequest{
			Shape: want.Shape, Template: want.Template, Claimant: claimant, Boot: want.Boot,
		})
		end()
		if err != nil {
			return nil, withCause(ctx, err)
		}
		claimed, err := c.take(ctx, adopter, offer, claimant, book, began)
		if err == nil {
			return claimed, nil
		}
		// A parked machine that has died meanwhile says nothing of the next one.
		if attempt == attempts || !errdefs.IsNotFound(err) || ctx.Err() != nil {
			return nil, withCause(ctx, fmt.Errorf("claim of %s: %w", offer.Entry, err))
		}
	}
}

func withCause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", err, context.Cause(ctx))
	}
	return err
}

// take adopts what is offered, in the order that leaves the machine with one
// owner at every point: the claimant's receipts, the daemon's consent, and only
// then does the machine run.
func (c *Client) take(ctx context.Context, adopter hypervisor.Adopter, offer *poolv1.ClaimResponse,
	claimant *poolv1.Process, book *receipt.Book, began time.Time,
) (_ *Claimed, err error) {
	entry := &poolv1.EntryRequest{Entry: offer.Entry, Claimant: claimant}
	var record hypervisor.Record
	var m hypervisor.Machine
	end := steps.Begin(ctx, "adopt")
	if err = json.Unmarshal(offer.Machine, &record); err == nil {
		m, err = adopter.Adopt(ctx, record, book)
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveUpTimeout)
		defer cancel()
		// The daemon would notice by itself, later.
		_, _ = c.Abandon(undo, entry)
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveUpTimeout)
		defer cancel()
		err = errors.Join(err, m.Destroy(undo))
	}()
	end()
	end = steps.Begin(ctx, "confirm")
	if _, err := c.Confirm(ctx, entry); err != nil {
		return nil, err
	}
	end()
	claimed := &Claimed{
		Machine: m, Template: offer.Template, Tier: offer.Tier, Age: offer.Age.AsDuration(),
		Owned: time.Since(began),
	}
	if offer.Parked {
		parker, ok := m.(hypervisor.Parker)
		if !ok {
			return nil, fmt.Errorf("unpark machine %s: %w", m.ID(), errdefs.ErrNotImplemented)
		}
		end := steps.Begin(ctx, "unpark")
		if err := parker.Unpark(ctx); err != nil {
			return nil, err
		}
		end()
	}
	claimed.Running = time.Since(began)
	return claimed, nil
}
