// Package command is the command line of bhyve-net.
package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"github.com/urfave/cli/v3"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// errFound makes check exit with a status of its own accord: what it has to say
// has been said.
var errFound = errors.New("")

const (
	configFlag = "config"
	jsonFlag   = "json"
	policyFlag = "policy"
	formatFlag = "format"
	repairFlag = "repair"
)

// timeout bounds a command.
const timeout = time.Minute

// New is the program.
func New() *cli.Command {
	return &cli.Command{
		Name:            "bhyve-net",
		Usage:           "the network of sandboxes",
		HideHelpCommand: true,
		// Exit statuses are main's.
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
		Flags: []cli.Flag{
			&cli.StringFlag{Name: configFlag, Sources: cli.EnvVars("BHYVE_NET_CONFIG"), Usage: "the network's configuration `FILE` (default: " + network.DefaultPath + ")"},
			&cli.BoolFlag{Name: jsonFlag, Usage: "print JSON"},
		},
		Commands: []*cli.Command{
			{Name: "list", Usage: "list sandboxes with their addresses and counters", Action: on(0, list)},
			{Name: "show", Usage: "show one sandbox, with its policy", ArgsUsage: "ID", Action: on(1, show)},
			{
				Name: "add", Usage: "give a sandbox a network, or complete it, and print it", ArgsUsage: "ID",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: policyFlag, Usage: "its policy, a TOML or JSON `FILE`; - for standard input"},
					&cli.StringFlag{Name: formatFlag, Usage: "print it as `FORMAT`: env, which is KEY=VALUE, json, or cni, the result format of CNI (default: env, or json with --json)"},
				},
				Action: on(1, add),
			},
			{Name: "del", Usage: "take a sandbox's network away", ArgsUsage: "ID", Action: on(1, del)},
			{
				Name: "policy", Usage: "change policies",
				Commands: []*cli.Command{
					{Name: "set", Usage: "replace a sandbox's policy with a TOML or JSON file's; - for standard input", ArgsUsage: "ID FILE", Action: on(2, setPolicy)},
				},
			},
			{
				Name: "check", Usage: "compare the host with the records of all sandboxes, or of one; the exit status is 1 if anything differs", ArgsUsage: "[ID]",
				Flags: []cli.Flag{&cli.BoolFlag{Name: repairFlag, Usage: "make what is missing"}}, Action: on(-1, check),
			},
			{Name: "gc", Usage: "remove addresses, taps and rules that no record owns", Action: on(0, gc)},
			serveCommand(),
			{Name: "down", Usage: "remove bridge and rules; no sandbox may be left", Action: on(0, down)},
		},
	}
}

// on is an action on the configured network, with n arguments; -1 for one at
// most.
func on(n int, action func(context.Context, *cli.Command, *network.Network) error) cli.ActionFunc {
	return func(ctx context.Context, c *cli.Command) error {
		if n >= 0 && c.NArg() != n || n < 0 && c.NArg() > 1 {
			return fmt.Errorf("%d arguments: see %s --help", c.NArg(), c.FullName())
		}
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		nw, err := open(c)
		if err != nil {
			return err
		}
		return action(ctx, c, nw)
	}
}

func open(c *cli.Command) (*network.Network, error) {
	cfg, err := network.LoadConfig(c.String(configFlag))
	if err != nil {
		return nil, err
	}
	return network.Open(cfg)
}

// output prints v as JSON if that is asked for, and else by text.
func output(c *cli.Command, v any, text func(io.Writer) error) error {
	w := c.Root().Writer
	if !c.Bool(jsonFlag) {
		return text(w)
	}
	return writeJSON(w, v)
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func list(ctx context.Context, c *cli.Command, n *network.Network) error {
	infos, err := n.List(ctx)
	if err != nil {
		return err
	}
	if infos == nil {
		infos = []network.Info{}
	}
	return output(c, infos, func(w io.Writer) error {
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(t, "ID\tADDRESS\tTAP\tSENT\tRECEIVED\tDENIED\tSPOOFED")
		for _, i := range infos {
			id := i.ID
			if !i.Ready {
				id += " (incomplete)"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%d\n", id, i.Address, i.Tap, i.Counters.SentBytes, i.Counters.ReceivedBytes, i.Counters.Denied, i.Counters.Spoofed)
		}
		return t.Flush()
	})
}

func show(ctx context.Context, c *cli.Command, n *network.Network) error {
	info, err := n.Show(ctx, c.Args().First())
	if err != nil {
		return err
	}
	return output(c, info, func(w io.Writer) error {
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		for _, kv := range [][2]any{
			{"id", info.ID}, {"address", info.Address}, {"mac", info.MAC}, {"gateway", info.Gateway}, {"dns", info.DNS},
			{"bridge", info.Bridge}, {"tap", info.Tap}, {"rules", info.Anchor},
			{"sent", fmt.Sprintf("%d bytes, %d packets", info.Counters.SentBytes, info.Counters.SentPackets)},
			{"received", fmt.Sprintf("%d bytes, %d packets", info.Counters.ReceivedBytes, info.Counters.ReceivedPackets)},
			{"denied", fmt.Sprintf("%d packets", info.Counters.Denied)}, {"spoofed", fmt.Sprintf("%d packets", info.Counters.Spoofed)},
		} {
			fmt.Fprintf(t, "%v:\t%v\n", kv[0], kv[1])
		}
		if err := t.Flush(); err != nil {
			return err
		}
		text, err := toml.Marshal(info.Policy)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "policy:\n%s", text)
		return err
	})
}

// printers print a sandbox's network, by the name of the format.
var printers = map[string]func(io.Writer, *network.Result) error{
	"env":  func(w io.Writer, r *network.Result) error { _, err := w.Write(r.Env()); return err },
	"json": func(w io.Writer, r *network.Result) error { return writeJSON(w, r) },
	// A machine is what the interface is in; there is no network namespace to name.
	"cni": func(w io.Writer, r *network.Result) error { return writeJSON(w, r.CNI(guestInterface, r.ID)) },
}

// guestInterface is what the shim has the interface called in a guest.
const guestInterface = "eth0"

func add(ctx context.Context, c *cli.Command, n *network.Network) error {
	format := "env"
	switch {
	case c.String(formatFlag) != "":
		format = c.String(formatFlag)
	case c.Bool(jsonFlag):
		format = "json"
	}
	// Before anything is made that would not be told of.
	printer, ok := printers[format]
	if !ok {
		return fmt.Errorf("format %q: want env, json or cni: %w", format, errdefs.ErrInvalidArgument)
	}
	r := network.Request{ID: c.Args().First()}
	if file := c.String(policyFlag); file != "" {
		p, err := readPolicy(c, file)
		if err != nil {
			return err
		}
		r.Policy = &p
	}
	result, err := n.Add(ctx, r)
	if err != nil {
		return err
	}
	return printer(c.Root().Writer, result)
}

func del(ctx context.Context, c *cli.Command, n *network.Network) error {
	released, err := n.Del(ctx, c.Args().First())
	if err != nil {
		return err
	}
	return output(c, released, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "STATES_BEFORE=%d\nSTATES_AFTER=%d\n", released.StatesBefore, released.StatesAfter)
		return err
	})
}

func setPolicy(ctx context.Context, c *cli.Command, n *network.Network) error {
	p, err := readPolicy(c, c.Args().Get(1))
	if err != nil {
		return err
	}
	return n.SetPolicy(ctx, c.Args().First(), p)
}

// readPolicy reads a policy in TOML, or in JSON as `show` prints it. An unknown
// key is an error: it was meant to restrict something.
func readPolicy(c *cli.Command, file string) (policy.Policy, error) {
	var p policy.Policy
	data, err := os.ReadFile(file)
	if file == "-" {
		data, err = io.ReadAll(c.Root().Reader)
	}
	if err != nil {
		return p, fmt.Errorf("policy: %w", err)
	}
	return policy.Parse(data)
}

// finding is what check says of one sandbox.
type finding struct {
	ID string `json:"id"`
	// Error is empty where everything is as it was made.
	Error string `json:"error,omitempty"`
}

func check(ctx context.Context, c *cli.Command, n *network.Network) error {
	ids := c.Args().Slice()
	if len(ids) == 0 {
		infos, err := n.List(ctx)
		if err != nil {
			return err
		}
		for _, i := range infos {
			ids = append(ids, i.ID)
		}
	}
	findings := []finding{}
	found := false
	for _, id := range ids {
		err := n.Check(ctx, id)
		if err != nil && c.Bool(repairFlag) {
			if err = n.Repair(ctx, id); err == nil {
				err = n.Check(ctx, id)
			}
		}
		f := finding{ID: id}
		if err != nil {
			f.Error, found = err.Error(), true
		}
		findings = append(findings, f)
	}
	err := output(c, findings, func(w io.Writer) error {
		for _, f := range findings {
			if f.Error != "" {
				fmt.Fprintln(w, f.Error)
			}
		}
		return nil
	})
	if err == nil && found {
		err = errFound
	}
	return err
}

func gc(ctx context.Context, c *cli.Command, n *network.Network) error {
	removed, err := n.GC(ctx, nil)
	if removed == nil {
		removed = []string{}
	}
	return errors.Join(output(c, removed, func(w io.Writer) error {
		for _, r := range removed {
			fmt.Fprintln(w, "removed", r)
		}
		return nil
	}), err)
}

func down(ctx context.Context, _ *cli.Command, n *network.Network) error { return n.Destroy(ctx) }
