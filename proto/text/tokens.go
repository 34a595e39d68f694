package text

import (
	"bytes"
	"math"
)

// tokens takes a line apart. Only the space separates; a run of spaces counts as one.
type tokens struct {
	line []byte
	pos  int
}

func (t *tokens) spaces() {
	for t.pos < len(t.line) && t.line[t.pos] == ' ' {
		t.pos++
	}
}

// word returns the bytes up to the next space, none at the end of the line. Length limits are the caller's: C++ goes
// on with the rest of a too long word as the next one, here such a line is refused.
func (t *tokens) word() []byte {
	t.spaces()
	rest := t.line[t.pos:]
	if i := bytes.IndexByte(rest, ' '); i >= 0 {
		rest = rest[:i]
	}
	t.pos += len(rest)
	return rest[:len(rest):len(rest)]
}

// number returns the longest run of digits and minus signs, none if something else comes next. No space is needed
// behind it: what follows directly is the next token.
func (t *tokens) number() []byte {
	t.spaces()
	start := t.pos
	for t.pos < len(t.line) && (t.line[t.pos] == '-' || isDigit(t.line[t.pos])) {
		t.pos++
	}
	return t.line[start:t.pos:t.pos]
}

// done reports whether only spaces are left.
func (t *tokens) done() bool {
	t.spaces()
	return t.pos == len(t.line)
}

// words appends all remaining words to dst.
func (t *tokens) words(dst [][]byte) [][]byte {
	for !t.done() {
		dst = append(dst, t.word())
	}
	return dst
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// parseUint reads decimal digits and nothing else.
func parseUint(b []byte) (uint64, bool) {
	if len(b) == 0 {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		d := uint64(c - '0')
		if !isDigit(c) || n > math.MaxUint64/10 || n*10 > math.MaxUint64-d {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}

// parseInt reads decimal digits with an optional minus sign.
func parseInt(b []byte) (int64, bool) {
	neg := len(b) > 0 && b[0] == '-'
	if neg {
		b = b[1:]
	}
	n, ok := parseUint(b)
	switch {
	case !ok:
		return 0, false
	case neg && n <= 1<<63:
		return -int64(n), true
	case !neg && n <= math.MaxInt64:
		return int64(n), true
	}
	return 0, false
}

// parseDelta reads an unsigned number in which a minus sign wraps around, so that -1 is the largest one.
func parseDelta(b []byte) (uint64, bool) {
	if len(b) > 0 && b[0] == '-' {
		n, ok := parseUint(b[1:])
		return -n, ok
	}
	return parseUint(b)
}
