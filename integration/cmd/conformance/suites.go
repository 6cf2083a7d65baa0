//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/conformance"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// suite is one that can be run; its program has its name.
type suite struct {
	name, title, about string
	run                func(context.Context, *lab.Lab, options, io.Writer) ([]conformance.Result, error)
	// only is the focus that selects the tests of these names.
	only func(names []string) string
}

var suites = []suite{
	{
		name: "critest", title: "critest",
		about: `Kubernetes' validation of container runtimes, through containerd's CRI with
` + "`sandboxer = \"shim\"`" + `. There is no way to a registry: the images that it names
are busybox and a small web server under those names.`,
		run:  critest,
		only: anyOf,
	},
	{
		name: "shimtest", title: "shimtest",
		about: `containerd's suite for shims, without containerd: the Task API as the shim's
socket has it. Its look for processes that are left finds those of tests that
never ask for the shim's end (FastExitInit, FastExitOutput,
ExecOutputDrainAfterExit, and those that skip or fail), with runc's shim as well;
the labs of this repository look for processes after every test.`,
		run:  shimtest,
		only: topLevel,
	},
	{
		name: "nerdctl", title: "nerdctl",
		about: `What people do with nerdctl: cases of this repository
(` + "`integration/nerdctl_linux_test.go`" + `) through the program as it is. Beside
these, ` + "`TestClients`" + ` runs one description of a case through ctr, nerdctl and
crictl.`,
		run:  nerdctl,
		only: topLevel,
	},
}

// anyOf is a pattern for the names as they are.
func anyOf(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = regexp.QuoteMeta(name)
	}
	return strings.Join(quoted, "|")
}

// topLevel is a pattern for go test, which selects by each level apart: the
// tests as a whole that have the names below them.
func topLevel(names []string) string {
	tops := make([]string, len(names))
	for i, name := range names {
		tops[i], _, _ = strings.Cut(name, "/")
	}
	slices.Sort(tops)
	return "^(" + anyOf(slices.Compact(tops)) + ")$"
}

// suiteTimeout bounds one suite.
const suiteTimeout = 75 * time.Minute

func critest(ctx context.Context, l *lab.Lab, o options, log io.Writer) ([]conformance.Result, error) {
	if err := l.PushCRIImages(ctx); err != nil {
		return nil, err
	}
	report := filepath.Join(o.out, "critest.xml")
	if err := os.RemoveAll(report); err != nil {
		return nil, err
	}
	args := []string{
		"-runtime-handler", o.handler,
		"-ginkgo.no-color", "-ginkgo.timeout", suiteTimeout.String(), "-ginkgo.junit-report", report,
	}
	// ginkgo takes any other number for a flag of go test's, and refuses it.
	if o.parallel > 1 {
		args = append(args, "-parallel", fmt.Sprint(o.parallel))
	}
	if o.focus != "" {
		args = append(args, "-ginkgo.focus", o.focus)
	}
	if err := start(l.Tool(ctx, "critest", args...), log); err != nil {
		return nil, err
	}
	f, err := os.Open(report)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return conformance.ReadJUnit(f)
}

// shims are the programs behind the handlers.
var shims = map[string]string{
	lab.HandlerRunc:  "containerd-shim-runc-v2",
	lab.HandlerBhyve: "containerd-shim-bhyve-v2",
}

func shimtest(ctx context.Context, l *lab.Lab, o options, log io.Writer) ([]conformance.Result, error) {
	// The leak check knows the shim by the absolute path of its program.
	shim, err := l.FindShim(shims[o.handler])
	if err != nil {
		return nil, err
	}
	config := filepath.Join(l.Dir, o.handler+".json")
	data, err := json.Marshal(map[string]any{"shim_binary": shim})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(config, data, 0o644); err != nil {
		return nil, err
	}
	prefix := "TestShim/" + o.handler + "/"
	args := []string{"-test.v", "-test.short", "-test.timeout", suiteTimeout.String(), "-shimtest.config", config}
	if o.focus != "" {
		args = append(args, "-test.run", prefix+o.focus)
	}
	cmd := l.Tool(ctx, "shimtest", args...)
	cmd.Env = append(cmd.Env, "SHIMTEST_TESTBIN="+l.ToolPath("testbin"))
	return goTest(cmd, prefix, log)
}

// nerdctl runs the cases in a lab of their own.
func nerdctl(ctx context.Context, l *lab.Lab, o options, log io.Writer) ([]conformance.Result, error) {
	prefix := "TestNerdctl/" + o.handler + "/"
	cmd := l.Tool(ctx, "integration.test", "-test.v", "-test.timeout", suiteTimeout.String(), "-test.run", prefix+o.focus)
	cmd.Dir = "integration"
	return goTest(cmd, prefix, log)
}

// goTest runs a Go test program and reads what it says.
func goTest(cmd *exec.Cmd, prefix string, log io.Writer) ([]conformance.Result, error) {
	var output bytes.Buffer
	if err := start(cmd, io.MultiWriter(log, &output)); err != nil {
		return nil, err
	}
	return conformance.ReadGoTest(&output, prefix)
}

// start runs a suite's program to its end. That tests failed is for the results
// to say.
func start(cmd *exec.Cmd, log io.Writer) error {
	fmt.Fprintln(log, "+", strings.Join(cmd.Args, " "))
	cmd.Stdout, cmd.Stderr = log, log
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return nil
	}
	return err
}
