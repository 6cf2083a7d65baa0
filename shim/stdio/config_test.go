package stdio

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestValidate(t *testing.T) {
	good := func(err error) bool { return err == nil }
	for value, want := range map[string]struct{ stdin, output func(error) bool }{
		"":                          {good, good},
		"/run/containerd/fifo/1/in": {good, good},
		"/run/100%/in":              {errdefs.IsInvalidArgument, errdefs.IsInvalidArgument},
		"fifo:///run/fifo/in":       {good, good},
		"file:///var/log/x":         {errdefs.IsInvalidArgument, good},
		"binary:///bin/logger?id=x": {errdefs.IsInvalidArgument, good},
		"binary-v2:///bin/logger":   {errdefs.IsInvalidArgument, good},
		"file://host/var/log/x":     {errdefs.IsInvalidArgument, errdefs.IsInvalidArgument},
		"file:x":                    {errdefs.IsInvalidArgument, errdefs.IsInvalidArgument},
		"binary://":                 {errdefs.IsInvalidArgument, errdefs.IsInvalidArgument},
		"npipe:////./pipe/x":        {errdefs.IsNotImplemented, errdefs.IsNotImplemented},
		"http://%zz":                {errdefs.IsInvalidArgument, errdefs.IsInvalidArgument},
		"\x00":                      {errdefs.IsInvalidArgument, errdefs.IsInvalidArgument},
	} {
		for _, tc := range []struct {
			name string
			cfg  Config
			kind func(error) bool
		}{
			{"stdin", Config{Stdin: value}, want.stdin},
			{"stdout", Config{Stdout: value}, want.output},
			{"stderr", Config{Stderr: value}, want.output},
		} {
			err := tc.cfg.Validate()
			if !tc.kind(err) {
				t.Errorf("%s %q: got %v", tc.name, value, err)
			}
			if err != nil && !strings.Contains(err.Error(), tc.name) {
				t.Errorf("error does not name %s: %v", tc.name, err)
			}
		}
	}
	for _, cfg := range []Config{
		{Stdout: "binary:///a", Stderr: "binary:///b"},
		{Stdout: "/fifo", Stderr: "binary:///b"},
		{Stdout: "binary:///a", Stderr: "file:///b"},
	} {
		if err := cfg.Validate(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: got %v", cfg, err)
		}
		// A terminal has no stderr.
		cfg.Terminal = true
		if err := cfg.Validate(); err != nil {
			t.Errorf("%+v: got %v", cfg, err)
		}
	}
}

func TestLoggerArgs(t *testing.T) {
	for query, want := range map[string][]string{
		"":                       nil,
		"z=1&a=2":                {"z", "1", "a", "2"},
		"-c=echo+a%26b%3Dc&d":    {"-c", "echo a&b=c", "d", ""},
		"_INTERNAL=/var/lib/%2F": {"_INTERNAL", "/var/lib//"},
	} {
		if got, err := loggerArgs(query); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: got %q, %v, want %q", query, got, err, want)
		}
	}
	if _, err := loggerArgs("a=%zz"); err == nil {
		t.Error("a malformed query passed")
	}
}
