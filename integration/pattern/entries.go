package pattern

import "fmt"

// EntryName is the name of entry i of a large directory. Names sort as their
// numbers do.
func EntryName(i int) string { return fmt.Sprintf("entry-%06d", i) }
