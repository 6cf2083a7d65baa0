package pattern

import (
	"fmt"
	"io"
	"net"
	"time"
)

// The first byte of a connection to Answer says what it is for: to be sent back
// each byte, or one when all have come.
const (
	Echo byte = 'e'
	Sink byte = 's'
)

// Measured is what a peer was seen to do.
type Measured struct {
	// RoundTrips are the times of single bytes there and back, in nanoseconds.
	RoundTrips []time.Duration `json:"round_trips_ns"`
	// Bytes have arrived there within Took nanoseconds.
	Bytes int           `json:"bytes"`
	Took  time.Duration `json:"took_ns"`
}

// Answer does what a connection asks for, until its end.
func Answer(conn net.Conn) error {
	var kind [1]byte
	if _, err := io.ReadFull(conn, kind[:]); err != nil {
		return err
	}
	if kind[0] == Echo {
		_, err := io.Copy(conn, conn)
		return err
	}
	if _, err := io.Copy(io.Discard, conn); err != nil {
		return err
	}
	_, err := conn.Write(kind[:])
	return err
}

// Measure times a peer that runs Answer.
func Measure(dial func() (net.Conn, error), rounds, mib int) (Measured, error) {
	m := Measured{Bytes: mib << 20}
	conn, err := dial()
	if err != nil {
		return m, err
	}
	defer conn.Close()
	one := []byte{Echo}
	// The first byte asks; the second shows that it was heard.
	if _, err := conn.Write(one); err != nil {
		return m, err
	}
	for range rounds + 1 {
		began := time.Now()
		if _, err := conn.Write(one); err != nil {
			return m, err
		}
		if _, err := io.ReadFull(conn, one); err != nil {
			return m, err
		}
		m.RoundTrips = append(m.RoundTrips, time.Since(began))
	}
	m.RoundTrips = m.RoundTrips[1:]

	bulk, err := dial()
	if err != nil {
		return m, err
	}
	defer bulk.Close()
	tcp, ok := bulk.(*net.TCPConn)
	if !ok {
		return m, fmt.Errorf("%T has no half-close", bulk)
	}
	if _, err := tcp.Write([]byte{Sink}); err != nil {
		return m, err
	}
	buf := make([]byte, 256<<10)
	began := time.Now()
	for sent := 0; sent < m.Bytes; sent += len(buf) {
		if _, err := tcp.Write(buf); err != nil {
			return m, err
		}
	}
	if err := tcp.CloseWrite(); err != nil {
		return m, err
	}
	if _, err := io.ReadFull(tcp, one); err != nil {
		return m, err
	}
	m.Took = time.Since(began)
	return m, nil
}
