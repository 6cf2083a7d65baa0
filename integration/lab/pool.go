package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/client"
)

// Pool is a daemon that keeps machines ready, which may be killed and started
// again. It is used by one caller at a time.
type Pool struct {
	// Client is connected to the daemon that runs now.
	Client *client.Client

	lab   *Lab
	dir   string
	state string
	flags []string
	cmd   *exec.Cmd
	done  chan struct{}
}

// PoolTemplate is the template that fits the lab's own shim configuration.
const PoolTemplate = "lab"

// NewPool starts a daemon with flags of `bhyve-pool serve`. Close ends it.
func (l *Lab) NewPool(ctx context.Context, flags ...string) (*Pool, error) {
	dir, err := os.MkdirTemp(l.Dir, "pool-")
	if err != nil {
		return nil, err
	}
	// Below /run, where a leak would be seen, and paths are short.
	p := &Pool{lab: l, dir: dir, state: filepath.Join("/var/run", filepath.Base(dir)), flags: flags}
	if err := os.Mkdir(p.state, 0o700); err != nil {
		return nil, err
	}
	return p, p.Start(ctx)
}

// Socket is the daemon's.
func (p *Pool) Socket() string { return filepath.Join(p.state, "sock") }

// Root is where templates and checkpoints are.
func (p *Pool) Root() string { return filepath.Join(p.dir, "root") }

func (p *Pool) program() string { return filepath.Join(p.lab.repo, artifacts.shimDir, "bhyve-pool") }

// Start starts the daemon, and returns when it serves.
func (p *Pool) Start(ctx context.Context) error {
	log, err := os.OpenFile(p.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := append([]string{"--socket", p.Socket(), "serve", "--root", p.Root(), "--boot-timeout", defaultBootTimeout.String()}, p.flags...)
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), p.program(), args...)
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = p.lab.Env(), log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// One that was killed has left its socket.
	if err := os.Remove(p.Socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	cmd, done := p.cmd, make(chan struct{})
	p.done = done
	go func() { _ = cmd.Wait(); close(done) }()

	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err = Eventually(ctx, func() (err error) {
		p.Client, err = client.Dial(ctx, p.Socket())
		return err
	})
	if err != nil {
		return fmt.Errorf("start the pool: %w\n%s", err, p.Log())
	}
	return nil
}

func (p *Pool) logPath() string { return filepath.Join(p.dir, "log") }

// Log is what the daemon had to say, without its guests.
func (p *Pool) Log() string {
	data, err := os.ReadFile(p.logPath())
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		if !strings.Contains(line, `msg="guest console"`) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// Run runs `bhyve-pool` with args against the daemon.
func (p *Pool) Run(ctx context.Context, args ...string) (Result, error) {
	cmd := exec.CommandContext(ctx, p.program(), append([]string{"--socket", p.Socket()}, args...)...)
	cmd.Env = p.lab.Env()
	return p.lab.Complete(cmd)
}

// AddTemplate adds PoolTemplate with further flags of `template add`.
func (p *Pool) AddTemplate(ctx context.Context, flags ...string) error {
	result, err := p.Run(ctx, append([]string{"template", "add", PoolTemplate, "--config", p.lab.shimConfigPath()}, flags...)...)
	if err == nil && result.Code != 0 {
		err = errors.New(result.String())
	}
	return err
}

// Warm has n machines of PoolTemplate wait.
func (p *Pool) Warm(ctx context.Context, n int) error {
	return p.WarmTelling(ctx, n, func(int, int) {})
}

// WarmTelling is Warm that tells how many wait of how many.
func (p *Pool) WarmTelling(ctx context.Context, n int, tell func(done, total int)) error {
	err := p.Client.Warm(ctx, PoolTemplate, n, tell)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, p.Log())
	}
	return nil
}

// Machines are the processes of those that the daemon knows of, by its records.
func (p *Pool) Machines() ([]proc.ID, error) {
	records, err := filepath.Glob(filepath.Join(p.state, "entries", "*", "entry.json"))
	if err != nil {
		return nil, err
	}
	var ids []proc.ID
	for _, path := range records {
		data, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		var entry struct {
			Machine *struct{ Process proc.ID }
		}
		if err == nil {
			err = json.Unmarshal(data, &entry)
		}
		if err != nil {
			return nil, err
		}
		if entry.Machine != nil {
			ids = append(ids, entry.Machine.Process)
		}
	}
	return ids, nil
}

// Pid is the daemon's.
func (p *Pool) Pid() int { return p.cmd.Process.Pid }

// Kill ends the daemon as a crash would, and leaves what it has.
func (p *Pool) Kill() {
	p.Client.Close()
	p.cmd.Process.Kill()
	<-p.done
}

// LoseHost leaves what a restart of the host does: no process of the pool's, and
// of its files those that are on disk.
func (p *Pool) LoseHost(ctx context.Context) error {
	p.Kill()
	machines, err := p.Machines()
	if err != nil {
		return err
	}
	for _, id := range machines {
		if err := id.Kill(ctx); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(p.state); err != nil {
		return err
	}
	return os.Mkdir(p.state, 0o700)
}

// poolStopTimeout bounds the daemon's end, in which it may undo a boot.
const poolStopTimeout = 90 * time.Second

// Close destroys what waits, ends the daemon and removes its files.
func (p *Pool) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), poolStopTimeout)
	defer cancel()
	_, err := p.Client.Drain(ctx, nil)
	p.Client.Close()
	if serr := p.cmd.Process.Signal(unix.SIGTERM); serr != nil && !errors.Is(serr, os.ErrProcessDone) {
		err = errors.Join(err, serr)
	}
	select {
	case <-p.done:
		if p.cmd.ProcessState.ExitCode() != 0 {
			err = errors.Join(err, fmt.Errorf("pool: %s\n%s", p.cmd.ProcessState, p.Log()))
		}
	case <-ctx.Done():
		p.cmd.Process.Kill()
		<-p.done
		err = errors.Join(err, fmt.Errorf("the pool had to be killed: %w", context.Cause(ctx)))
	}
	left, rerr := os.ReadDir(filepath.Join(p.state, "entries"))
	if len(left) > 0 {
		var names bytes.Buffer
		for _, e := range left {
			fmt.Fprint(&names, " ", e.Name())
		}
		err = errors.Join(err, fmt.Errorf("the pool has left entries:%s\n%s", names.String(), p.Log()))
	}
	return errors.Join(err, rerr, os.RemoveAll(p.state), os.RemoveAll(p.dir))
}
