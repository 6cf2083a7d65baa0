// Package steps notes when the steps of one request began and ended, for the one
// line that the log has of it: where the time went of a container that starts in
// milliseconds is not to be had from the times of lines.
package steps

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Step is a part of a request. Steps may overlap.
type Step struct {
	Name string
	// Begin and End are since the beginning of the record.
	Begin, End time.Duration
}

// Record has the steps of one request that have ended, in the order of their
// ends. It is safe for concurrent use.
type Record struct {
	began time.Time

	mu    sync.Mutex
	steps []Step
}

type key struct{}

// With returns a context whose steps are noted in the record, which begins now.
func With(ctx context.Context) (context.Context, *Record) {
	r := &Record{began: time.Now()}
	return r.In(ctx), r
}

// In returns a context whose steps are noted in r, as those of a later request
// that is part of the same matter are.
func (r *Record) In(ctx context.Context) context.Context { return context.WithValue(ctx, key{}, r) }

// Begin begins a step, and returns what ends it. Without a record in ctx it does
// nothing.
func Begin(ctx context.Context, name string) (end func()) {
	r, ok := ctx.Value(key{}).(*Record)
	if !ok {
		return func() {}
	}
	began := time.Since(r.began)
	return func() { r.add(Step{name, began, time.Since(r.began)}) }
}

// Note notes a step that began at a time and took as long as that, as somebody
// else has measured it.
func Note(ctx context.Context, name string, began time.Time, took time.Duration) {
	if r, ok := ctx.Value(key{}).(*Record); ok {
		at := began.Sub(r.began)
		r.add(Step{name, at, at + took})
	}
}

func (r *Record) add(s Step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.steps = append(r.steps, s)
}

// Steps are those that have ended by now.
func (r *Record) Steps() []Step {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Step(nil), r.steps...)
}

// String is what Parse reads: name@begin+duration in milliseconds, for each step.
func (r *Record) String() string {
	var b strings.Builder
	for i, s := range r.Steps() {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s@%.1f+%.1f", s.Name, milliseconds(s.Begin), milliseconds(s.End-s.Begin))
	}
	return b.String()
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Parse reads what String has written.
func Parse(text string) ([]Step, error) {
	var list []Step
	for word := range strings.FieldsSeq(text) {
		name, times, ok1 := strings.Cut(word, "@")
		begin, took, ok2 := strings.Cut(times, "+")
		at, err1 := strconv.ParseFloat(begin, 64)
		d, err2 := strconv.ParseFloat(took, 64)
		if !ok1 || !ok2 || err1 != nil || err2 != nil {
			return nil, fmt.Errorf("step %q: want name@begin+duration", word)
		}
		list = append(list, Step{name, duration(at), duration(at + d)})
	}
	return list, nil
}

func duration(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }
