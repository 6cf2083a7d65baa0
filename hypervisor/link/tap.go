package link

// TapKind is the kind of FreeBSD's taps in a receipt book.
const TapKind = "tap"

// tapReceipt is a tap(4), which outlives whoever made it. The system's names
// are used again, so a tap is known by the mark in its description as well.
type tapReceipt struct {
	Name string `json:"name"`
	Mark string `json:"mark"`
	// New is true until the tap is known to bear the mark: the kernel makes one
	// without, and who makes it may be killed before it is marked.
	New bool `json:"new,omitempty"`
}

// Kind implements receipt.Resource.
func (tapReceipt) Kind() string { return TapKind }

// owns says whether an interface of the receipt's name is its tap, by its
// description and by whether it is up. A tap that bears no mark yet is as the
// kernel has made it. Its name was free when it was taken at random, so it is
// nobody else's.
func (r tapReceipt) owns(description string, up bool) bool {
	return description == r.Mark || r.New && description == "" && !up
}
