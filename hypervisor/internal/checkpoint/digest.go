package checkpoint

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sync/singleflight"
)

// blockSize is what Digest skips where it is all zero.
const blockSize = 64 << 10

// known are the digests of files as they were when this process read them.
var known sync.Map // identity to string

// reading are the files that are being read.
var reading singleflight.Group

// identity is a file and the state that it is in: whatever is written to it
// changes its times, of which nobody can set the last one back.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64
}

// Digest is a hash of a file's contents: SHA-256 over all blocks of 64 KiB that
// have a byte other than zero in them, each after its number as 8 bytes, big
// endian, and over the file's size at the end. So a file of mostly zeros, as a
// young guest's memory is, costs no more than what is in it, and is the same
// with holes and without.
//
// A file that this process has read before, and that was not touched since, is
// not read again, and not twice at the same time. The result is in hexadecimal.
func Digest(path string) (string, error) {
	sum, err, _ := reading.Do(path, func() (any, error) { return digestOnce(path) })
	return sum.(string), err
}

func digestOnce(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	before, err := identify(f)
	if err != nil {
		return "", err
	}
	if sum, ok := known.Load(before); ok {
		return sum.(string), nil
	}
	sum, err := digest(f)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	after, err := identify(f)
	if err == nil && after != before {
		err = fmt.Errorf("%s changes while it is read", path)
	}
	if err != nil {
		return "", err
	}
	known.Store(after, sum)
	return sum, nil
}

func identify(f *os.File) (identity, error) {
	info, err := f.Stat()
	if err != nil {
		return identity{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}, errors.ErrUnsupported
	}
	return identity{
		dev: uint64(st.Dev), ino: uint64(st.Ino), size: info.Size(),
		mtime: info.ModTime().UnixNano(), ctime: changeTime(st),
	}, nil
}

func digest(f *os.File) (string, error) {
	h := sha256.New()
	var block, zeros [blockSize]byte
	var number [8]byte
	var size int64
	for offset := int64(0); ; {
		// Over the holes. File systems that have none say that all is data.
		if data, err := f.Seek(offset, seekData); err == nil {
			offset = data / blockSize * blockSize
		} else if errors.Is(err, syscall.ENXIO) {
			// None is left.
			info, err := f.Stat()
			if err != nil {
				return "", err
			}
			size = info.Size()
			break
		}
		n, err := f.ReadAt(block[:], offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		if !bytes.Equal(block[:n], zeros[:n]) {
			binary.BigEndian.PutUint64(number[:], uint64(offset/blockSize))
			h.Write(number[:])
			h.Write(block[:n])
		}
		offset += int64(n)
		if err != nil {
			size = offset
			break
		}
	}
	binary.BigEndian.PutUint64(number[:], uint64(size))
	h.Write(number[:])
	return hex.EncodeToString(h.Sum(nil)), nil
}
