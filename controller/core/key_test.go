package core

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestCompareKey compares nodes' keys with others as the keys themselves compare.
func TestCompareKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name, port := rapid.StringMatching(`[a-c:1]{0,4}`), rapid.IntRange(-20, 200)
		n := Node{Name: name.Draw(t, "name"), Port: port.Draw(t, "port")}
		key := nodeKey(name.Draw(t, "other name"), port.Draw(t, "other port"))
		if rapid.Bool().Draw(t, "part") {
			key = n.Key()[:rapid.IntRange(0, len(n.Key())).Draw(t, "length")]
		}
		if got, want := n.compareKey(key), strings.Compare(n.Key(), key); got != want {
			t.Errorf("%q with %q: %d, want %d", n.Key(), key, got, want)
		}
	})
}
