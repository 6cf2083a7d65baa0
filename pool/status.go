package pool

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
)

// Status is everything there is to say of the pool at this moment.
func (p *Pool) Status() (*poolv1.StatusResponse, error) {
	memory, err := p.opts.Memory()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	r := &poolv1.StatusResponse{
		Since:       timestamppb.New(p.since),
		Draining:    p.draining,
		DaemonRss:   residentSelf(),
		ClaimsUnfit: p.unfit.count, LastUnfit: p.unfit.last,
		Memory: &poolv1.Memory{
			Total: memory.Total, Available: memory.Available,
			Reserve: p.admission.reserve, Promised: p.admission.promised,
		},
	}
	offered := map[string]uint32{}
	for _, e := range p.entries {
		switch e.State {
		case stateOffered:
			offered[e.Template]++
		case stateGiven:
			r.Claimed++
		}
	}
	for _, s := range p.templates {
		r.Templates = append(r.Templates, s.status(now, offered[s.Name]))
	}
	slices.SortFunc(r.Templates, func(a, b *poolv1.TemplateStatus) int {
		return strings.Compare(a.Template.Name, b.Template.Name)
	})
	return r, nil
}

func (s *stock) status(now time.Time, offered uint32) *poolv1.TemplateStatus {
	c := s.counts
	t := &poolv1.TemplateStatus{
		Template: s.proto(),
		Hot:      uint32(len(s.hot)), Making: uint32(s.making), Offered: offered,
		ClaimsHot: c.hot, ClaimsCold: c.cold, ClaimsBoot: c.boot, ClaimsMissed: c.missed,
		MadeCold: c.madeCold, MadeBoot: c.madeBoot, Evicted: c.evicted, Failed: c.failed,
		RefillRate: float64(len(s.recent(now))) / refillWindow.Minutes(),
		Trouble:    s.trouble(),
	}
	if s.saving {
		t.Making++
	}
	if cold := s.usable(); cold != nil {
		t.Checkpoint = &poolv1.Checkpoint{Id: cold.ID, Made: timestamppb.New(cold.Made), Bytes: cold.bytes}
	}
	return t
}

// trouble is the worst of what there is. The caller holds Pool.mu.
func (s *stock) trouble() string {
	switch {
	case s.retry.err != nil:
		return s.retry.err.Error()
	case s.resave.err != nil:
		return s.resave.err.Error()
	case s.refused != nil:
		return s.refused.Error()
	}
	return ""
}
