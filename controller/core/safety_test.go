package core

import "testing"

func TestTooMuch(t *testing.T) {
	for _, tt := range []struct {
		maxDown     float64
		lost, total int
		want        bool
	}{
		{0.5, 1, 2, false}, {0.5, 2, 4, false}, {0.5, 3, 4, true}, {0.5, 2, 3, true}, {0.5, 1, 1, true}, {0.5, 0, 0, false},
		{0, 0, 4, false}, {0, 1, 1000, true},
		{1, 4, 4, false},
		{0.34, 1, 3, false}, {0.333, 1, 3, true},
		{0.2, 200, 1000, false}, {0.2, 201, 1000, true},
	} {
		p := FailoverPolicy{MinUp: Million - int(tt.maxDown*Million)}
		if got := p.tooMuch(tt.lost, tt.total); got != tt.want {
			t.Errorf("%d of %d lost with maxDownFraction %v: %t, want %t", tt.lost, tt.total, tt.maxDown, got, tt.want)
		}
	}
	if (FailoverPolicy{}).tooMuch(9, 9) {
		t.Error("without a policy the breaker opens")
	}
}

func TestFraction(t *testing.T) {
	for millionths, want := range map[int]string{0: "0", 500_000: "0.5", 333_300: "0.3333", Million: "1"} {
		if got := fraction(millionths); got != want {
			t.Errorf("%d millionths: %q, want %q", millionths, got, want)
		}
	}
}
