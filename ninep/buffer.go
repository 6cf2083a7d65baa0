package ninep

import "sync"

// Three sizes of buffer cover metadata, readahead and the largest transfers,
// so that many small requests in flight do not pin a megabyte each.
const (
	smallBuffer  = 8 << 10
	mediumBuffer = 160 << 10
)

var bufferSizes = [...]int{smallBuffer, mediumBuffer, maxMsize}

var bufferPools = [len(bufferSizes)]sync.Pool{}

// getBuffer returns n bytes of unspecified content, n at most maxMsize.
func getBuffer(n int) []byte {
	for i, size := range bufferSizes {
		if n > size {
			continue
		}
		if p, ok := bufferPools[i].Get().(*[]byte); ok {
			return (*p)[:n]
		}
		return make([]byte, n, size)
	}
	return make([]byte, n)
}

// putBuffer takes back what getBuffer gave. The caller keeps no slice of it.
func putBuffer(b []byte) {
	for i, size := range bufferSizes {
		if cap(b) == size {
			b = b[:size]
			bufferPools[i].Put(&b)
			return
		}
	}
}
