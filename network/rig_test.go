package network

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// patience is longer than anything takes on a busy machine. One that is emulated
// says by how much it is slower (integration/lab.SlowEnv).
var patience = time.Duration(slowness) * 20 * time.Second

var slowness = func() int {
	n, err := strconv.Atoi(os.Getenv("BHYVE_LAB_SLOW"))
	if err != nil || n < 1 {
		return 1
	}
	return n
}()

// rig is a host of its own, and a world beyond it with some servers. What they
// are made of is the system's: network namespaces, or VNET jails.
type rig struct {
	t           *testing.T
	host, world *place
	net         *Network
}

// A place is where sockets are made. Each system's has
//
//	dial(ctx, network, address) (net.Conn, error)
//	listen(port) (net.Listener, error)            TCP, every address
//	listenPacket(port) (net.PacketConn, error)    UDP, every address

// Addresses of the world's: two of the internet (RFC 5737), one of a private
// network. Its servers listen on every one of them.
const (
	friend  = "203.0.113.10"
	foe     = "203.0.113.66"
	private = "192.168.50.10"
	// uplink is the host's own address in the world, the first of two.
	uplink = "203.0.113.1"
)

// helperEnv makes the test's program a process that adds and deletes networks
// until it is killed: it has the configuration, in JSON.
const helperEnv = "NETWORK_TEST_HELPER"

func TestMain(m *testing.M) {
	if text := os.Getenv(helperEnv); text != "" {
		var cfg Config
		if err := json.Unmarshal([]byte(text), &cfg); err != nil {
			panic(err)
		}
		churn(cfg)
	}
	os.Exit(runIn(m))
}

func newRig(t *testing.T, p policy.Policy) *rig {
	t.Helper()
	cfg := DefaultConfig()
	cfg.State, cfg.Policy = t.TempDir(), p
	cfg.DNS = []netip.Addr{netip.MustParseAddr(friend)}
	n, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, net: n}
	r.build()
	return r
}

// in runs f on the host, and ends the test where it fails.
func (r *rig) in(f func() error) {
	r.t.Helper()
	if err := r.try(f); err != nil {
		r.t.Fatal(err)
	}
}

// guest stands for a virtual machine: a place with an interface whose frames
// come out of the sandbox's tap.
type guest struct {
	*Result
	*place
	// wire is the guest's end of the tap, to write frames to by hand.
	wire *os.File
}

func (r *rig) add(id string, p *policy.Policy) *Result {
	r.t.Helper()
	var result *Result
	r.in(func() (err error) {
		result, err = r.net.Add(r.t.Context(), Request{ID: id, Policy: p})
		return err
	})
	return result
}

func (r *rig) del(id string) Released {
	r.t.Helper()
	var released Released
	r.in(func() (err error) {
		released, err = r.net.Del(r.t.Context(), id)
		return err
	})
	return released
}

// guest adds a network and a guest on it.
func (r *rig) guest(id string, p *policy.Policy) *guest {
	r.t.Helper()
	g := &guest{Result: r.add(id, p)}
	r.start(g)
	return g
}

// start has a guest on its wire.
func (r *rig) start(g *guest) {
	r.t.Helper()
	inside := r.plug(g)
	go pump(g.wire, inside)
	go pump(inside, g.wire)
	r.t.Cleanup(func() { g.wire.Close(); inside.Close() })
}

// pump copies frames: one read is one frame, and must be one write.
func pump(dst, src *os.File) {
	buf := make([]byte, 128<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		dst.Write(buf[:n])
	}
}

// listen gives each TCP connection to a port of a place to a function, and closes it
// then.
func (r *rig) listen(p *place, port uint16, serve func(net.Conn)) {
	r.t.Helper()
	l, err := p.listen(port)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c) }()
		}
	}()
}

// serve answers TCP connections and UDP datagrams to a port of a place with what
// it is sent.
func (r *rig) serve(p *place, port uint16) {
	r.t.Helper()
	r.listen(p, port, func(c net.Conn) { io.Copy(c, c) })
	u, err := p.listenPacket(port)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { u.Close() })
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			u.WriteTo(buf[:n], from)
		}
	}()
}

// open opens a flow from a place and sends something there and back.
func (r *rig) open(ctx context.Context, p *place, network, addr string) (net.Conn, error) {
	conn, err := p.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if err := echo(ctx, conn); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func echo(ctx context.Context, conn net.Conn) error {
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })()
	const word = "hello"
	if _, err := conn.Write([]byte(word)); err != nil {
		return err
	}
	buf := make([]byte, len(word))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return err
	}
	if string(buf) != word {
		return fmt.Errorf("answer %q", buf)
	}
	return nil
}

// passes says that a flow can be opened.
func (r *rig) passes(p *place, network, addr string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	conn, err := r.open(ctx, p, network, addr)
	if err != nil {
		r.t.Errorf("%s to %s: %v, want it to pass", network, addr, err)
		return
	}
	conn.Close()
}

// comesToPass says that a flow can be opened, in a while: who is to take it is told
// of it by the file system.
func (r *rig) comesToPass(p *place, network, addr string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		once, stop := context.WithTimeout(ctx, patience/10)
		conn, err := r.open(once, p, network, addr)
		stop()
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-ctx.Done():
			r.t.Errorf("%s to %s: %v, want it to pass", network, addr, err)
			return
		case <-tick.C:
		}
	}
}

// denied says that a flow cannot be opened, by the counter of what was stopped.
func (r *rig) denied(id string, p *place, network, addr string) {
	r.t.Helper()
	r.stopped(id, network+" to "+addr, denied, func(ctx context.Context) error {
		conn, err := r.open(ctx, p, network, addr)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// stopped does something until a counter of a sandbox has gone up.
func (r *rig) stopped(id, what string, counter func(Counters) uint64, do func(context.Context) error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	before := counter(r.counters(id))
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if err == nil {
				r.t.Errorf("%s: passed, want it stopped", what)
				return
			}
			done = nil
		case <-tick.C:
			if counter(r.counters(id)) > before {
				return
			}
		case <-ctx.Done():
			r.t.Errorf("%s: was not counted as stopped", what)
			return
		}
	}
}

func (r *rig) counters(id string) Counters {
	r.t.Helper()
	var info *Info
	r.in(func() (err error) { info, err = r.net.Show(r.t.Context(), id); return err })
	return info.Counters
}

// left is everything that belongs to the network: what the host has of it,
// addresses and records.
func (r *rig) left() (all []string) {
	r.t.Helper()
	r.in(func() (err error) { all, err = r.leftOnHost(); return err })
	for _, dir := range []string{sandboxDir, addressDir} {
		entries, err := os.ReadDir(filepath.Join(r.net.store.dir, dir))
		if err != nil {
			r.t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, dir+"/"+e.Name())
		}
	}
	return all
}
