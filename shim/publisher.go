package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/ttrpcutil"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// ttrpcAddressEnv is where containerd tells its shims the socket for events
// (pkg/shim).
const ttrpcAddressEnv = "TTRPC_ADDRESS"

// publisher hands events to containerd. Unlike pkg/shim's it does not put aside
// what could not be delivered: that would overtake or be overtaken, and is given
// up after some tries. An event is delivered when Publish returns nil; otherwise
// whoever keeps the order tries again.
type publisher struct {
	client *ttrpcutil.Client
}

var _ events.Publisher = (*publisher)(nil)

// newPublisher does not connect yet: containerd may be restarting.
func newPublisher() (*publisher, error) {
	address := os.Getenv(ttrpcAddressEnv)
	if address == "" {
		return nil, fmt.Errorf("no %s: containerd has not said where it takes events", ttrpcAddressEnv)
	}
	client, err := ttrpcutil.NewClient(address)
	if err != nil {
		return nil, err
	}
	return &publisher{client}, nil
}

// Publish implements events.Publisher. The namespace is that of ctx.
func (p *publisher) Publish(ctx context.Context, topic string, event events.Event) error {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return err
	}
	body, err := typeurl.MarshalAnyToProto(event)
	if err != nil {
		return err
	}
	err = p.forward(ctx, &eventsapi.ForwardRequest{Envelope: &types.Envelope{
		Timestamp: timestamppb.New(time.Now()),
		Namespace: ns,
		Topic:     topic,
		Event:     body,
	}})
	return errgrpc.ToNative(err)
}

func (p *publisher) forward(ctx context.Context, r *eventsapi.ForwardRequest) error {
	service, err := p.client.EventsService()
	if err != nil {
		return err
	}
	if _, err = service.Forward(ctx, r); !errors.Is(err, ttrpc.ErrClosed) {
		return err
	}
	// That was the connection to a containerd that has gone since.
	if err := p.client.Reconnect(); err != nil {
		return err
	}
	if service, err = p.client.EventsService(); err != nil {
		return err
	}
	_, err = service.Forward(ctx, r)
	return err
}

// Close ends the connection.
func (p *publisher) Close() error { return p.client.Close() }
