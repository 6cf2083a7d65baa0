package command

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/client"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
)

// printJSON writes messages for a program to read.
var printJSON = protojson.MarshalOptions{Multiline: true, Indent: "  ", UseProtoNames: true, EmitUnpopulated: true}

func templateCommand() *cli.Command {
	return &cli.Command{
		Name:  "template",
		Usage: "what machines are made from",
		Commands: []*cli.Command{
			addCommand(),
			{Name: "list", Aliases: []string{"ls"}, Usage: "all templates", Action: connected(0, 0, callTimeout, listTemplates)},
			{Name: "show", Usage: "one template in JSON", ArgsUsage: "NAME", Action: connected(1, 1, callTimeout, showTemplate)},
			{Name: "rm", Usage: "remove a template, what waits of it, and its checkpoint", ArgsUsage: "NAME", Action: connected(1, 1, callTimeout, removeTemplate)},
		},
	}
}

func addCommand() *cli.Command {
	return &cli.Command{
		Name:      "add",
		Usage:     "add a template, or replace the one of this name",
		ArgsUsage: "NAME",
		Description: "What is not given is taken from the shim's configuration, so that its machines fit.\n" +
			"Fewer than --low waiting machines are filled up to --high.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Usage: "the shim's configuration `FILE`", Value: config.DefaultPath, Sources: cli.EnvVars(config.PathEnv)},
			&cli.StringFlag{Name: "guest-dir", Usage: "`DIRECTORY` of the guest image"},
			&cli.IntFlag{Name: "vcpus", Usage: "virtual CPUs"},
			&cli.IntFlag{Name: "memory-mib", Usage: "memory in MiB"},
			&cli.StringSliceFlag{Name: "kernel-arg", Usage: "kernel argument, any number of times"},
			&cli.BoolFlag{Name: "nic", Usage: "with a network interface, or, by --nic=false, without"},
			&cli.IntFlag{Name: "low", Usage: "low watermark of waiting machines", Value: 1},
			&cli.IntFlag{Name: "high", Usage: "high watermark of waiting machines", Value: 2},
			&cli.BoolFlag{Name: "no-checkpoint", Usage: "keep none on disk"},
			&cli.BoolFlag{Name: "no-rehearsal", Usage: "do not run a container that does nothing before a machine waits or is saved"},
			&cli.BoolFlag{Name: "rehearse-clones", Usage: "run one in restored machines too: faster to start in under emulation, and less memory is shared"},
			&cli.DurationFlag{Name: "idle-timeout", Usage: "shrink to --low after so long without a claim; 0 is never"},
		},
		Action: connected(1, 1, callTimeout, addTemplate),
	}
}

func addTemplate(ctx context.Context, c *cli.Command, conn *client.Client) error {
	t, err := templateFrom(c)
	if err != nil {
		return err
	}
	stored, err := conn.AddTemplate(ctx, &poolv1.AddTemplateRequest{Template: t})
	if err != nil {
		return err
	}
	fmt.Fprintf(c.Root().Writer, "%s: %s\n", stored.Name, stored.Shape.Describe())
	return nil
}

// templateFrom is the template of the flags and, where they say nothing, of the
// shim's configuration.
func templateFrom(c *cli.Command) (*poolv1.Template, error) {
	cfg, err := config.Read(c.String("config"))
	if errdefs.IsNotFound(err) && !c.IsSet("config") {
		cfg, err = config.Default(), nil
	}
	if err != nil {
		return nil, err
	}
	if c.IsSet("guest-dir") {
		if cfg.Guest.Dir, err = filepath.Abs(c.String("guest-dir")); err != nil {
			return nil, err
		}
	}
	if c.IsSet("vcpus") {
		cfg.Machine.VCPUs = c.Int("vcpus")
	}
	if c.IsSet("memory-mib") {
		cfg.Machine.MemoryMiB = c.Int("memory-mib")
	}
	if c.IsSet("kernel-arg") {
		cfg.Machine.KernelArgs = c.StringSlice("kernel-arg")
	}
	for _, n := range []int{cfg.Machine.VCPUs, cfg.Machine.MemoryMiB, c.Int("low"), c.Int("high")} {
		if n < 0 {
			return nil, fmt.Errorf("template add: %d is negative", n)
		}
	}
	nic := cfg.Network.Mode != config.NetworkNone
	if c.IsSet("nic") {
		nic = c.Bool("nic")
	}
	return &poolv1.Template{
		Name:     c.Args().First(),
		GuestDir: cfg.Guest.Dir,
		Shape: &poolv1.Shape{
			Vcpus: uint32(cfg.Machine.VCPUs), MemoryMib: uint32(cfg.Machine.MemoryMiB),
			KernelArgs: cfg.Machine.KernelArgs, Nic: nic,
		},
		Low: uint32(c.Int("low")), High: uint32(c.Int("high")),
		Cold:     !c.Bool("no-checkpoint"),
		Rehearse: !c.Bool("no-rehearsal"), RehearseClones: c.Bool("rehearse-clones"),
		IdleTimeout: durationpb.New(c.Duration("idle-timeout")),
	}, nil
}

func listTemplates(ctx context.Context, c *cli.Command, conn *client.Client) error {
	s, err := conn.Status(ctx, nil)
	if err != nil {
		return err
	}
	w := table(c)
	fmt.Fprintln(w, "NAME\tMACHINE\tLOW\tHIGH\tCHECKPOINT\tIDLE TIMEOUT")
	for _, t := range s.Templates {
		m := t.Template
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\n", m.Name, m.Shape.Describe(), m.Low, m.High,
			yesNo(m.Cold), orNever(m.IdleTimeout.AsDuration()))
	}
	return w.Flush()
}

func showTemplate(ctx context.Context, c *cli.Command, conn *client.Client) error {
	s, err := conn.Status(ctx, nil)
	if err != nil {
		return err
	}
	name := c.Args().First()
	i := slices.IndexFunc(s.Templates, func(t *poolv1.TemplateStatus) bool { return t.Template.Name == name })
	if i < 0 {
		return fmt.Errorf("template %q: %w", name, os.ErrNotExist)
	}
	data, err := printJSON.Marshal(s.Templates[i])
	if err != nil {
		return err
	}
	fmt.Fprintf(c.Root().Writer, "%s\n", data)
	return nil
}

func removeTemplate(ctx context.Context, c *cli.Command, conn *client.Client) error {
	_, err := conn.RemoveTemplate(ctx, &poolv1.TemplateRequest{Name: c.Args().First()})
	return err
}
