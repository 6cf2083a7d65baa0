// Package thaw is the host's side of the step by which a machine becomes one of
// its kind: after every boot, restore and unparking, and before anything of a
// workload. The guest's side is agent's Thaw service, which also says what is
// done in which order.
package thaw

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

// Identity is who the machine is from now on.
type Identity struct {
	// MachineID is that of machine-id(5). Empty is one at random.
	MachineID string
	// Hostname is the guest's own, not its containers'. Empty leaves it as it is.
	Hostname string
}

// Proof is what the guest has answered, and what was measured of it.
type Proof struct {
	BootID, MachineID, Hostname string
	// Uptime is the time since the guest's kernel started.
	Uptime time.Duration
	Clock  Clock
}

// Do thaws a machine: one exchange where the link is fast, and a few more for
// the clock where it is not. A clock that could not be set right is no error: see
// Proof. After an error the machine is not fit for a workload.
func Do(ctx context.Context, agent agentv1.ThawService, id Identity) (Proof, error) {
	p, err := do(ctx, agent, id, false)
	if err == nil && p.BootID == "" {
		err = errors.New("the guest has no boot id")
	}
	if err != nil {
		return p, fmt.Errorf("thaw: %w", err)
	}
	return p, nil
}

// Rehearse does what Do does, and leaves the machine as unthawed as it was.
func Rehearse(ctx context.Context, agent agentv1.ThawService) error {
	if _, err := do(ctx, agent, Identity{}, true); err != nil {
		return fmt.Errorf("rehearse the thaw: %w", err)
	}
	return nil
}

func do(ctx context.Context, agent agentv1.ThawService, id Identity, rehearsal bool) (Proof, error) {
	if id.MachineID == "" {
		id.MachineID = random(16)
	}
	nonce, entropy := make([]byte, 16), make([]byte, 2*agentproto.MinEntropy)
	rand.Read(nonce)
	rand.Read(entropy)

	// The host's time is this one reading and what passes after it, so that a
	// step of its wall clock in between is nobody's error.
	now := time.Now()
	resp, err := agent.Thaw(ctx, &agentv1.ThawRequest{
		Nonce: nonce, Now: timestamppb.New(now), Entropy: entropy, MachineId: id.MachineID, Hostname: id.Hostname,
		Rehearsal: rehearsal,
	})
	if err != nil {
		return Proof{}, err
	}
	p := Proof{BootID: resp.BootId, MachineID: resp.MachineId, Hostname: resp.Hostname, Uptime: resp.Uptime.AsDuration()}
	switch {
	case !bytes.Equal(resp.Nonce, nonce):
		return p, errors.New("the answer is not to this question")
	case resp.MachineId != id.MachineID, id.Hostname != "" && resp.Hostname != id.Hostname:
		return p, fmt.Errorf("the guest is not who it was told to be: %v", resp)
	}
	// Between setting its clock to now and reading it again, the guest's clock
	// went as the host's: what is missing is the time on the way there and back.
	guest := resp.Clock.AsTime().Sub(now)
	e := interval{guest - time.Since(now), 0}
	p.Clock, err = correct(ctx, agent, now, e, Clock.isUncertain)
	return p, err
}

// random returns n bytes in hexadecimal.
func random(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}
