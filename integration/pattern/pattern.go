// Package pattern is a stream of bytes that both ends of a test can make
// without having sent it to each other. It does not repeat, so that a block
// that was lost, doubled or moved changes the checksum.
package pattern

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
)

// Reader returns the first n bytes of the pattern.
func Reader(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{}), n)
}

// Sum is what `probe sum` prints for the bytes of r: how many there were, and
// their SHA-256.
func Sum(r io.Reader) (string, error) {
	hash := sha256.New()
	n, err := io.Copy(hash, r)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d %s", n, hex.EncodeToString(hash.Sum(nil))), nil
}
