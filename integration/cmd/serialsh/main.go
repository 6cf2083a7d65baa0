// Command serialsh takes ssh's arguments and runs the command on the root shell
// behind a serial console, for hosts that have no more than that:
//
//	SSH="serialsh -console PATH" make test-freebsd HOST=console
//
// PATH is a terminal's device, at the speed that it is set to, or a UNIX socket.
// Host and port are not used. The exit code is the command's, or as ssh's 255.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/serialsh"
)

func main() {
	path := flag.String("console", "", "the terminal or `socket` that the console is at")
	noInput := flag.Bool("n", false, "no input")
	flag.String("p", "", "`port`, not used")
	flag.Parse()
	if *path == "" || flag.NArg() < 2 {
		fmt.Fprintln(os.Stderr, "usage: serialsh -console PATH [-n] [-p PORT] HOST COMMAND...")
		os.Exit(255)
	}
	code, err := run(*path, strings.Join(flag.Args()[1:], " "), *noInput)
	if err != nil {
		fmt.Fprintln(os.Stderr, "serialsh:", err)
		os.Exit(255)
	}
	os.Exit(code)
}

func run(path, command string, noInput bool) (code int, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// The second one ends this program, whatever the line does.
	context.AfterFunc(ctx, stop)
	// Whoever reads the output may go: an error like others.
	signal.Ignore(syscall.SIGPIPE)
	link, err := serialsh.Open(ctx, path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, link.Close()) }()
	return serialsh.Run(ctx, link, serialsh.Command{
		Line: command, Stdin: stdin(noInput), Stdout: os.Stdout, Stderr: os.Stderr,
	})
}

// stdin is nil for a terminal too: what is typed there is not for the host.
func stdin(none bool) io.Reader {
	info, err := os.Stdin.Stat()
	if none || err != nil || info.Mode()&os.ModeCharDevice != 0 {
		return nil
	}
	return os.Stdin
}
