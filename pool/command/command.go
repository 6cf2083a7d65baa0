// Package command is the command line of bhyve-pool.
package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/client"
)

// errFound makes check exit with a status of its own accord: what it has to say
// has been said.
var errFound = errors.New("")

const socketFlag = "socket"

// callTimeout bounds a call that makes no machine.
const callTimeout = time.Minute

// New is the program. Its daemon makes machines with backend.
func New(backend hypervisor.Backend) *cli.Command {
	return &cli.Command{
		Name:            "bhyve-pool",
		Usage:           "keep virtual machines ready for containers",
		HideHelpCommand: true,
		// Exit statuses are main's.
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
		Flags: []cli.Flag{
			&cli.StringFlag{Name: socketFlag, Value: poolv1.DefaultSocket, Sources: cli.EnvVars("BHYVE_POOL_SOCKET"), Usage: "the daemon's `SOCKET`"},
		},
		Commands: []*cli.Command{
			serveCommand(backend),
			templateCommand(),
			warmCommand(),
			checkpointCommand(),
			statusCommand(),
			evictCommand(),
			simple("drain", "make and hand out nothing more, and destroy what waits", drain),
			simple("resume", "end a drain", resume),
			searching("check", "list what nobody owns; the exit status is 1 if there is anything", check),
			searching("gc", "remove what check lists", gc),
			benchCommand(backend),
		},
	}
}

// simple is a command without arguments.
func simple(name, usage string, action func(context.Context, *cli.Command, *client.Client) error) *cli.Command {
	return &cli.Command{Name: name, Usage: usage, Action: connected(0, 0, callTimeout, action)}
}

// searching is a simple command that tells of findings.
func searching(name, usage string, action func(context.Context, *cli.Command, *client.Client) error) *cli.Command {
	c := simple(name, usage, action)
	c.Flags = []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "for a program to read"}}
	return c
}

// connected is an action on a connection to the daemon, with at least low and at
// most high arguments, that takes no longer than limit unless that is zero.
func connected(low, high int, limit time.Duration, action func(context.Context, *cli.Command, *client.Client) error) cli.ActionFunc {
	return func(ctx context.Context, c *cli.Command) error {
		if n := c.NArg(); n < low || n > high {
			return fmt.Errorf("%d arguments: see %s --help", n, c.FullName())
		}
		if limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		conn, err := client.Dial(ctx, c.String(socketFlag))
		if err != nil {
			return fmt.Errorf("%w (is `bhyve-pool serve` running?)", err)
		}
		defer conn.Close()
		return action(ctx, c, conn)
	}
}

func warmCommand() *cli.Command {
	return &cli.Command{
		Name:      "warm",
		Usage:     "make machines until N of a template wait, whatever its watermarks are",
		ArgsUsage: "NAME N",
		Action: connected(2, 2, 0, func(ctx context.Context, c *cli.Command, conn *client.Client) error {
			var n int
			if _, err := fmt.Sscanf(c.Args().Get(1), "%d", &n); err != nil || n < 0 {
				return fmt.Errorf("warm: %q is not a number of machines", c.Args().Get(1))
			}
			began := time.Now()
			err := conn.Warm(ctx, c.Args().First(), n, func(done, total int) {
				fmt.Fprintf(os.Stderr, "\r%d of %d hot, %.1f s ", done, total, time.Since(began).Seconds())
			})
			fmt.Fprintln(os.Stderr)
			return err
		}),
	}
}

func checkpointCommand() *cli.Command {
	return &cli.Command{
		Name:      "checkpoint",
		Usage:     "make a template's checkpoint anew",
		ArgsUsage: "NAME",
		Action: connected(1, 1, 0, func(ctx context.Context, c *cli.Command, conn *client.Client) error {
			_, err := conn.Checkpoint(ctx, &poolv1.TemplateRequest{Name: c.Args().First()})
			return err
		}),
	}
}

func evictCommand() *cli.Command {
	return &cli.Command{
		Name:      "evict",
		Usage:     "destroy machines that wait, of one template or of all",
		ArgsUsage: "[NAME]",
		Flags: []cli.Flag{
			&cli.UintFlag{Name: "count", Aliases: []string{"n"}, Usage: "the `N` that have waited longest; 0 is all"},
			&cli.BoolFlag{Name: "cold", Usage: "the checkpoint as well"},
		},
		Action: connected(0, 1, callTimeout, func(ctx context.Context, c *cli.Command, conn *client.Client) error {
			gone, err := conn.Evict(ctx, &poolv1.EvictRequest{
				Template: c.Args().First(), Hot: uint32(c.Uint("count")), Cold: c.Bool("cold"),
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(c.Root().Writer, "%d machines, %d checkpoints\n", gone.Hot, gone.Cold)
			return nil
		}),
	}
}

func drain(ctx context.Context, c *cli.Command, conn *client.Client) error {
	gone, err := conn.Drain(ctx, nil)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.Root().Writer, "%d machines\n", gone.Hot)
	return nil
}

func resume(ctx context.Context, c *cli.Command, conn *client.Client) error {
	_, err := conn.Resume(ctx, nil)
	return err
}

func check(ctx context.Context, c *cli.Command, conn *client.Client) error {
	found, err := conn.Check(ctx, nil)
	if err != nil {
		return err
	}
	if err := printFindings(c, found, "nothing", ""); err != nil {
		return err
	}
	if len(found.Findings) > 0 {
		return errFound
	}
	return nil
}

func gc(ctx context.Context, c *cli.Command, conn *client.Client) error {
	gone, err := conn.GC(ctx, nil)
	if err != nil {
		return err
	}
	return printFindings(c, gone, "", "removed: ")
}

// printFindings prints a line each, with a prefix, or none if there are none.
func printFindings(c *cli.Command, found *poolv1.Findings, none, prefix string) error {
	w := c.Root().Writer
	if c.Bool("json") {
		data, err := printJSON.Marshal(found)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "%s\n", data)
		return err
	}
	if len(found.Lines) == 0 && none != "" {
		fmt.Fprintln(w, none)
	}
	for _, line := range found.Lines {
		fmt.Fprintln(w, prefix+line)
	}
	return nil
}

func table(c *cli.Command) *tabwriter.Writer {
	return tabwriter.NewWriter(c.Root().Writer, 0, 0, 2, ' ', 0)
}
