package steps

import (
	"context"
	"slices"
	"testing"
	"time"
)

func TestStepsOfARequest(t *testing.T) {
	ctx, r := With(context.Background())
	outer := Begin(ctx, "outer")
	Begin(ctx, "inner")()
	outer()
	// A later request of the same matter.
	Begin(r.In(context.Background()), "later")()
	Note(ctx, "theirs", r.began.Add(2*time.Millisecond), 3*time.Millisecond)

	var names []string
	for _, s := range r.Steps() {
		names = append(names, s.Name)
		if s.End < s.Begin {
			t.Errorf("%+v ends before it begins", s)
		}
	}
	if want := []string{"inner", "outer", "later", "theirs"}; !slices.Equal(names, want) {
		t.Errorf("steps %q, want %q", names, want)
	}
	parsed, err := Parse(r.String())
	if err != nil {
		t.Fatal(err)
	}
	if last := parsed[len(parsed)-1]; last != (Step{"theirs", 2 * time.Millisecond, 5 * time.Millisecond}) || len(parsed) != len(names) {
		t.Errorf("%q was read as %+v", r, parsed)
	}
}

func TestWithoutARecordNothingIsNoted(t *testing.T) {
	Begin(context.Background(), "unheard")()
	Note(context.Background(), "unheard", time.Now(), time.Second)
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{"spec", "spec@1", "spec@1+x", "spec+1@2"} {
		if steps, err := Parse(text); err == nil {
			t.Errorf("%q was read as %v", text, steps)
		}
	}
}
