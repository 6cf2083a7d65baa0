//go:build linux

package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// monitor is a QMP connection (docs/interop/qmp-spec.txt in QEMU's source). It
// is safe for concurrent use; commands are carried out one at a time.
type monitor struct {
	conn net.Conn
	// turn is held by the one command that is under way.
	turn chan struct{}
	// closed is closed when no more messages come.
	closed chan struct{}
	// version is QEMU's.
	version string

	mu       sync.Mutex
	lastID   uint64
	replies  map[uint64]chan message
	shutdown string
}

// message is anything that QEMU sends: the greeting, a reply or an event.
type message struct {
	QMP    *greeting       `json:"QMP"`
	ID     uint64          `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *monitorError   `json:"error"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
}

// greeting is the first message on a connection. All of the version tells one
// build from another.
type greeting struct {
	Version struct {
		QEMU struct {
			Major int `json:"major"`
			Minor int `json:"minor"`
			Micro int `json:"micro"`
		} `json:"qemu"`
		Package string `json:"package"`
	} `json:"version"`
}

func (g *greeting) String() string {
	v := g.Version.QEMU
	return fmt.Sprintf("%d.%d.%d %s", v.Major, v.Minor, v.Micro, strings.TrimSpace(g.Version.Package))
}

// monitorError is a command that QEMU refused.
type monitorError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *monitorError) Error() string { return e.Desc }

// errMonitorClosed is returned for commands on a connection that has ended,
// most likely together with QEMU.
var errMonitorClosed = errors.New("monitor connection closed")

// maxMessage bounds one message from QEMU, which a guest may have taken over.
const maxMessage = 1 << 20

// openMonitor negotiates on a fresh connection, which it owns from then on.
func openMonitor(ctx context.Context, conn net.Conn) (*monitor, error) {
	m := &monitor{
		conn: conn, turn: make(chan struct{}, 1),
		closed: make(chan struct{}), replies: map[uint64]chan message{},
	}
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, maxMessage)
	greeting, err := readGreeting(ctx, conn, lines)
	if err == nil && greeting.QMP == nil {
		err = errors.New("the first message is not a greeting")
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("QMP: %w", err)
	}
	m.version = greeting.QMP.String()
	go m.read(lines)
	if err := m.execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func readGreeting(ctx context.Context, conn net.Conn, lines *bufio.Scanner) (message, error) {
	release := interruptible(ctx, conn.SetReadDeadline)
	defer release()
	var msg message
	if !lines.Scan() {
		if err := context.Cause(ctx); err != nil {
			return msg, err
		}
		return msg, errors.Join(errMonitorClosed, lines.Err())
	}
	return msg, json.Unmarshal(lines.Bytes(), &msg)
}

// interruptible makes the deadline pass when ctx ends, until released.
func interruptible(ctx context.Context, setDeadline func(time.Time) error) (release func()) {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		setDeadline(time.Unix(1, 0))
	})
	return func() {
		if !stop() {
			<-interrupted
		}
		setDeadline(time.Time{})
	}
}

// Close ends the connection. Commands under way fail.
func (m *monitor) Close() error {
	err := m.conn.Close()
	<-m.closed
	return err
}

// Shutdown is the reason in QEMU's last SHUTDOWN event (ShutdownCause in
// qapi/run-state.json), or "" if there was none.
func (m *monitor) Shutdown() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shutdown
}

// read receives until the connection ends.
func (m *monitor) read(lines *bufio.Scanner) {
	defer close(m.closed)
	for lines.Scan() {
		var msg message
		if err := json.Unmarshal(lines.Bytes(), &msg); err != nil {
			break
		}
		m.dispatch(msg)
	}
	// Nothing is understood after a message that was not: fail at once rather
	// than by time-outs.
	m.conn.Close()
}

func (m *monitor) dispatch(msg message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if msg.Event == "SHUTDOWN" {
		var data struct {
			Reason string `json:"reason"`
		}
		if json.Unmarshal(msg.Data, &data) == nil {
			m.shutdown = data.Reason
		}
	}
	if reply, ok := m.replies[msg.ID]; ok && msg.Event == "" {
		delete(m.replies, msg.ID)
		reply <- msg // has room for it
	}
}

// execute carries out one command. args is marshalled to its arguments and may
// be nil; the reply is unmarshalled into result unless that is nil. The error
// is a *monitorError where QEMU refused.
func (m *monitor) execute(ctx context.Context, command string, args, result any) error {
	return m.executeWith(ctx, nil, command, args, result)
}

// executeWith is execute with an open file that goes with the command.
func (m *monitor) executeWith(ctx context.Context, file *os.File, command string, args, result any) error {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return fmt.Errorf("QMP %s: %w", command, context.Cause(ctx))
	case <-m.closed:
		return fmt.Errorf("QMP %s: %w", command, errMonitorClosed)
	}
	msg, err := m.roundTrip(ctx, file, command, args)
	if err == nil && msg.Error != nil {
		err = msg.Error
	}
	if err == nil && result != nil {
		err = json.Unmarshal(msg.Return, result)
	}
	if err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	return nil
}

func (m *monitor) roundTrip(ctx context.Context, file *os.File, command string, args any) (message, error) {
	reply := make(chan message, 1)
	m.mu.Lock()
	m.lastID++
	id := m.lastID
	m.replies[id] = reply
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.replies, id)
		m.mu.Unlock()
	}()

	request := struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id}
	data, err := json.Marshal(request)
	if err != nil {
		return message{}, err
	}
	release := interruptible(ctx, m.conn.SetWriteDeadline)
	err = m.write(append(data, '\n'), file)
	release()
	if err != nil {
		// Half a command may be on the wire.
		m.conn.Close()
		if ctx.Err() != nil {
			return message{}, context.Cause(ctx)
		}
		return message{}, fmt.Errorf("%w: %w", errMonitorClosed, err)
	}
	select {
	case msg := <-reply:
		return msg, nil
	case <-ctx.Done():
		return message{}, context.Cause(ctx)
	case <-m.closed:
		// The reply may have been the last message.
		select {
		case msg := <-reply:
			return msg, nil
		default:
			return message{}, errMonitorClosed
		}
	}
}

// write writes a message, with a file in its ancillary data (unix(7),
// SCM_RIGHTS) if there is one.
func (m *monitor) write(data []byte, file *os.File) error {
	if file == nil {
		_, err := m.conn.Write(data)
		return err
	}
	conn, ok := m.conn.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("a file over %T: %w", m.conn, errors.ErrUnsupported)
	}
	n, _, err := conn.WriteMsgUnix(data, unix.UnixRights(int(file.Fd())), nil)
	if err == nil && n < len(data) {
		_, err = conn.Write(data[n:])
	}
	return err
}
