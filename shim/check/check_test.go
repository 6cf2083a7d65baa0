package check

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
)

func found(what string, err error) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return what, err }
}

func TestRun(t *testing.T) {
	there := item{name: "a", look: found("it is", nil)}
	without := item{name: "b", optional: true, look: found("", errors.New("not\n  there"))}
	missing := item{name: "c", look: found("", errors.New("gone: get it"))}
	for name, tc := range map[string]struct {
		items  []item
		status int
		want   string
	}{
		"everything":         {[]item{there}, 0, "ok       a: it is\n"},
		"something optional": {[]item{without, there}, 0, "without  b: not there\nok       a: it is\n"},
		"something missing":  {[]item{missing, there}, 1, "MISSING  c: gone: get it\nok       a: it is\nMachines cannot run here until what is missing is there.\n"},
	} {
		var out bytes.Buffer
		if status := run(t.Context(), &out, tc.items); status != tc.status || out.String() != tc.want {
			t.Errorf("%s: status %d\n%s", name, status, &out)
		}
	}
}

func TestItemsAreBounded(t *testing.T) {
	it := item{look: func(ctx context.Context) (string, error) {
		if _, bounded := ctx.Deadline(); !bounded {
			t.Error("an item may take for ever")
		}
		return "", nil
	}}
	it.try(context.Background())
}

func TestThisHost(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	t.Setenv(config.PathEnv, file)
	lines := func() string {
		var out bytes.Buffer
		if status := Run(t.Context(), &out); status != 1 {
			t.Errorf("status %d without a guest image", status)
		}
		return out.String()
	}
	if got := lines(); !strings.Contains(got, "MISSING  configuration: ") || !strings.Contains(got, file) {
		t.Errorf("without its configuration:\n%s", got)
	}
	if err := os.WriteFile(file, []byte("[guest]\ndir = \"/no/such/image\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := lines()
	for _, want := range []string{"ok       configuration: ", "MISSING  guest image: no guest image in /no/such/image", "make guest"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}
