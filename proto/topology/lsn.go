package topology

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// LSN is a position in the one history of a partition. Epoch grows by one with every promotion and Index by one
// with every write batch, across epochs. The zero LSN is the position before the first batch.
type LSN struct {
	Epoch uint64 `json:"epoch"`
	Index uint64 `json:"index"`
}

// Compare orders positions: by epoch, then by index.
func (l LSN) Compare(o LSN) int {
	return cmp.Or(cmp.Compare(l.Epoch, o.Epoch), cmp.Compare(l.Index, o.Index))
}

// Less reports whether l comes before o.
func (l LSN) Less(o LSN) bool { return l.Compare(o) < 0 }

// IsZero reports whether l is the position before the first batch.
func (l LSN) IsZero() bool { return l == LSN{} }

// String returns "epoch/index", the form ParseLSN reads.
func (l LSN) String() string {
	return strconv.FormatUint(l.Epoch, 10) + "/" + strconv.FormatUint(l.Index, 10)
}

// ParseLSN reads "epoch/index".
func ParseLSN(s string) (LSN, error) {
	epoch, index, ok := strings.Cut(s, "/")
	if !ok {
		return LSN{}, fmt.Errorf("position %q: want epoch/index, two decimal numbers", s)
	}
	var l LSN
	var err error
	if l.Epoch, err = strconv.ParseUint(epoch, 10, 64); err != nil {
		return LSN{}, fmt.Errorf("position %q: epoch: %w", s, err)
	}
	if l.Index, err = strconv.ParseUint(index, 10, 64); err != nil {
		return LSN{}, fmt.Errorf("position %q: index: %w", s, err)
	}
	return l, nil
}
