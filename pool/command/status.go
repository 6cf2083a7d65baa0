package command

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/client"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "what waits, and what claims have come to",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "for a program to read"},
			&cli.DurationFlag{Name: "watch", Usage: "again and again, every `DURATION`"},
		},
		Action: connected(0, 0, 0, func(ctx context.Context, c *cli.Command, conn *client.Client) error {
			show := showStatus
			if c.Bool("json") {
				show = statusJSON
			}
			every := c.Duration("watch")
			if every <= 0 {
				return show(ctx, c.Root().Writer, conn)
			}
			return watch(ctx, every, func() error {
				if !c.Bool("json") {
					// Home, and clear to the end (ECMA-48, CUP and ED).
					fmt.Fprint(c.Root().Writer, "\x1b[H\x1b[J")
				}
				return show(ctx, c.Root().Writer, conn)
			})
		}),
	}
}

func watch(ctx context.Context, every time.Duration, show func() error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := show(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func getStatus(ctx context.Context, conn *client.Client) (*poolv1.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return conn.Status(ctx, nil)
}

func statusJSON(ctx context.Context, w io.Writer, conn *client.Client) error {
	s, err := getStatus(ctx, conn)
	if err != nil {
		return err
	}
	data, err := printJSON.Marshal(s)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", data)
	return err
}

func showStatus(ctx context.Context, w io.Writer, conn *client.Client) error {
	s, err := getStatus(ctx, conn)
	if err != nil {
		return err
	}
	return printStatus(w, s, time.Now())
}

func printStatus(w io.Writer, s *poolv1.StatusResponse, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "TEMPLATE\tHOT\tLOW-HIGH\tMAKING\tOFFERED\tCOLD\tHITS: HOT\tCOLD\tBOOT\tMISSED\tREFILL/MIN\tEVICTED\tFAILED\t")
	for _, s := range s.Templates {
		cold := "-"
		if c := s.Checkpoint; c != nil {
			cold = size(c.Bytes)
		}
		fmt.Fprintf(t, "%s\t%d\t%d-%d\t%d\t%d\t%s\t%d\t%d\t%d\t%d\t%.0f\t%d\t%d\t\n",
			s.Template.Name, s.Hot, s.Template.Low, s.Template.High, s.Making, s.Offered, cold,
			s.ClaimsHot, s.ClaimsCold, s.ClaimsBoot, s.ClaimsMissed, s.RefillRate, s.Evicted, s.Failed)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	m := s.Memory
	fmt.Fprintf(w, "\nmemory: %s of %s available, %s reserved, %s promised; daemon %s, up %s\n",
		size(m.GetAvailable()), size(m.GetTotal()), size(m.GetReserve()), size(m.GetPromised()),
		size(s.DaemonRss), now.Sub(s.Since.AsTime()).Round(time.Second))
	fmt.Fprintf(w, "machines that were claimed and still run: %d\n", s.Claimed)
	if s.ClaimsUnfit > 0 {
		fmt.Fprintf(w, "claims that fit no template: %d, the last for %s\n", s.ClaimsUnfit, s.LastUnfit)
	}
	if s.Draining {
		fmt.Fprintln(w, "draining: nothing is made or handed out")
	}
	for _, s := range s.Templates {
		if s.Trouble != "" {
			fmt.Fprintf(w, "%s: %s\n", s.Template.Name, firstLine(s.Trouble))
		}
	}
	return nil
}

// size is a number of bytes in three digits or so.
func size(bytes uint64) string {
	const unit = 1024
	value, suffix := float64(bytes), "B"
	for _, s := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if value < unit {
			break
		}
		value, suffix = value/unit, s
	}
	if value < 10 && suffix != "B" {
		return fmt.Sprintf("%.1f %s", value, suffix)
	}
	return fmt.Sprintf("%.0f %s", value, suffix)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func orNever(d time.Duration) string {
	if d == 0 {
		return "never"
	}
	return d.String()
}

func firstLine(s string) string {
	first, _, more := strings.Cut(s, "\n")
	if more {
		first += " …"
	}
	return first
}
