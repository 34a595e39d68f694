package steady

import (
	"testing"
	"time"
)

func TestSince(t *testing.T) {
	begin := time.Now().Add(-time.Hour)
	at := func(s int) time.Time { return begin.Add(time.Duration(s) * time.Second) }
	l := Load{success: []time.Time{at(0), at(1), at(2), at(7), at(8)}}
	n, pause, end := l.Since(at(1))
	if n != 4 || pause < time.Hour-8*time.Second || !end.Equal(at(7)) {
		t.Errorf("%d writes, longest pause %v, the longest that is over until %v", n, pause, end.Sub(begin))
	}
	l.success = append(l.success, time.Now())
	if n, pause, end = l.Since(at(9)); n != 1 || pause > time.Hour || !end.Equal(l.success[5]) {
		t.Errorf("%d writes, longest pause %v until %v", n, pause, end.Sub(begin))
	}
	if n, pause, end = l.Since(time.Now()); n != 0 || pause > time.Hour || !end.IsZero() {
		t.Errorf("after the last: %d writes, longest pause %v until %v", n, pause, end.Sub(begin))
	}
}
