package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/jail"
)

// place is a VNET jail, or with no door the jail that the tests are in. A thread
// cannot enter a jail without its process. So a process in the jail makes the
// sockets, and hands them over: a socket stays in the network that it was made in.
type place struct {
	jail int
	door *net.UnixConn
}

// placeEnv makes the test's program the process in a jail. Its end of the door is
// file 3.
const placeEnv = "NETWORK_TEST_PLACE"

// socketRequest asks for a socket. With it goes a connection for the answer; the
// asker closes it when it does not want one any more.
type socketRequest struct{ Kind, Network, Address string }

// socketAnswer comes with the socket, if there is no Error.
type socketAnswer struct {
	Error string
	Errno syscall.Errno
}

// Kinds of sockets.
const (
	dialed         = "dial"
	listening      = "listen"
	listeningQuiet = "packet"
)

func (p *place) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if p.door == nil {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	f, err := p.socket(ctx, socketRequest{dialed, network, addr})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileConn(f)
}

func (p *place) listen(port uint16) (net.Listener, error) {
	addr := fmt.Sprintf(":%d", port)
	if p.door == nil {
		return net.Listen("tcp4", addr)
	}
	f, err := p.socket(context.Background(), socketRequest{listening, "tcp4", addr})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileListener(f)
}

func (p *place) listenPacket(port uint16) (net.PacketConn, error) {
	addr := fmt.Sprintf(":%d", port)
	if p.door == nil {
		return net.ListenPacket("udp4", addr)
	}
	f, err := p.socket(context.Background(), socketRequest{listeningQuiet, "udp4", addr})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FilePacketConn(f)
}

// socket has a socket made in the jail.
func (p *place) socket(ctx context.Context, req socketRequest) (*os.File, error) {
	mine, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	answers, err := unixConn(mine)
	if err != nil {
		return nil, err
	}
	defer answers.Close()
	defer context.AfterFunc(ctx, func() { answers.Close() })()
	if err := send(p.door, req, theirs); err != nil {
		return nil, err
	}
	var answer socketAnswer
	f, err := receive(answers, &answer)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, err
	case answer.Errno != 0:
		return nil, fmt.Errorf("%s: %w", answer.Error, answer.Errno)
	case answer.Error != "":
		return nil, errors.New(answer.Error)
	}
	return f, nil
}

// serveSockets is the process in a jail. It ends when the door is closed.
func serveSockets() {
	door, err := unixConn(os.NewFile(3, "door"))
	if err != nil {
		panic(err)
	}
	for {
		var req socketRequest
		to, err := receive(door, &req)
		if err != nil {
			return
		}
		go func() {
			answers, err := unixConn(to)
			if err != nil {
				return
			}
			defer answers.Close()
			ctx, cancel := context.WithCancel(context.Background())
			go func() { defer cancel(); answers.Read(make([]byte, 1)) }()
			f, err := makeSocket(ctx, req)
			var answer socketAnswer
			if err != nil {
				answer.Error = err.Error()
				errors.As(err, &answer.Errno)
			}
			// Whoever does not want it any more is not there.
			_ = send(answers, answer, f)
			f.Close()
		}()
	}
}

func makeSocket(ctx context.Context, req socketRequest) (*os.File, error) {
	var s interface {
		File() (*os.File, error)
		Close() error
	}
	switch req.Kind {
	case dialed:
		conn, err := new(net.Dialer).DialContext(ctx, req.Network, req.Address)
		if err != nil {
			return nil, err
		}
		s = conn.(interface {
			File() (*os.File, error)
			Close() error
		})
	case listening:
		l, err := net.Listen(req.Network, req.Address)
		if err != nil {
			return nil, err
		}
		s = l.(*net.TCPListener)
	default:
		conn, err := net.ListenPacket(req.Network, req.Address)
		if err != nil {
			return nil, err
		}
		s = conn.(*net.UDPConn)
	}
	defer s.Close()
	return s.File()
}

// socketPair keeps messages apart.
func socketPair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b"), nil
}

// unixConn takes f over.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

func send(to *net.UnixConn, message any, f *os.File) error {
	data, err := json.Marshal(message)
	if err != nil {
		return err
	}
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	_, _, err = to.WriteMsgUnix(data, rights, nil)
	return err
}

func receive(from *net.UnixConn, message any) (*os.File, error) {
	data, rights := make([]byte, 4096), make([]byte, 64)
	n, oob, _, _, err := from.ReadMsgUnix(data, rights)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, net.ErrClosed
	}
	if err := json.Unmarshal(data[:n], message); err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:oob])
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "received"), nil
}

// newPlace makes a jail and the process in it.
func newPlace(t *testing.T) *place {
	t.Helper()
	id, err := jail.New(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := jail.Remove(id); err != nil {
			t.Error(err)
		}
	})
	if out, err := exec.Command(ifconfig, "-j", strconv.Itoa(id), "lo0", "inet", "127.0.0.1/8", "up").CombinedOutput(); err != nil {
		t.Fatalf("lo0 of a jail: %v: %s", err, out)
	}
	mine, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	door, err := unixConn(mine)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = []string{placeEnv + "=1"}
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Jail: id}
	if err := cmd.Start(); err != nil {
		door.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() { door.Close(); cmd.Wait() })
	return &place{id, door}
}
