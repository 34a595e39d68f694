package text

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

const (
	// baseBuffer is what a connection costs. Larger buffers are given back before the next message.
	baseBuffer = 16 << 10
	// firstValue is what is allocated for a data block before its bytes arrived; then twice what has.
	firstValue = 64 << 10
	// keepValue bounds the memory of data blocks that is used again.
	keepValue = 1 << 20

	defaultMaxLine  = 1 << 20
	defaultMaxValue = 64 << 20
)

// values holds the memory of data blocks that were used up: a connection has some only while it reads one.
var values sync.Pool

// errLongLine is what line returns for a line above the limit; the line is then being discarded.
var errLongLine = errors.New("line too long")

// input reads lines and data blocks. A slice it returns is valid until the next call of any of its methods that reads.
type input struct {
	r       io.Reader
	maxLine int // bytes without the line end

	buf      []byte // buf[pos:end] is what was read but not consumed
	pos, end int

	value *[]byte // memory of the last data block that did not fit in buf; nil if there is none

	skip     int64 // bytes to throw away before anything else is read
	skipLine bool  // throw away everything up to the next LF, after skip
}

func (in *input) init(r io.Reader, maxLine int) {
	if maxLine <= 0 {
		maxLine = defaultMaxLine
	}
	*in = input{r: r, maxLine: maxLine}
}

// release gives oversized memory back. What was returned before is not valid any more.
func (in *input) release() {
	if in.value != nil {
		if cap(*in.value) <= keepValue {
			values.Put(in.value)
		}
		in.value = nil
	}
	if len(in.buf) > baseBuffer && in.buffered() <= baseBuffer {
		b := make([]byte, baseBuffer)
		in.end = copy(b, in.buf[in.pos:in.end])
		in.pos, in.buf = 0, b
	}
}

// buffered returns how many bytes can be consumed without reading.
func (in *input) buffered() int { return in.end - in.pos }

// fill reads at least one more byte behind buf[pos:end], growing the buffer if there is no room.
func (in *input) fill() error {
	if in.pos == in.end {
		in.pos, in.end = 0, 0
	}
	if in.end == len(in.buf) {
		b := in.buf
		if in.pos == 0 {
			b = make([]byte, max(baseBuffer, 2*len(b)))
		}
		in.end = copy(b, in.buf[in.pos:in.end])
		in.pos, in.buf = 0, b
	}
	n, err := readSome(in.r, in.buf[in.end:])
	in.end += n
	return err
}

// readSome reads at least one byte or returns an error.
func readSome(r io.Reader, b []byte) (int, error) {
	for range 100 {
		n, err := r.Read(b)
		if n > 0 {
			return n, nil // a lasting error comes again with the next read
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, io.ErrNoProgress
}

// discard throws away what skip and skipLine ask for.
func (in *input) discard() error {
	for in.skip > 0 {
		if in.buffered() == 0 {
			if err := in.fill(); err != nil {
				return unexpected(err)
			}
		}
		n := int(min(in.skip, int64(in.buffered())))
		in.pos += n
		in.skip -= int64(n)
	}
	for in.skipLine {
		if i := bytes.IndexByte(in.buf[in.pos:in.end], '\n'); i >= 0 {
			in.pos += i + 1
			in.skipLine = false
			break
		}
		in.pos = in.end
		if err := in.fill(); err != nil {
			return unexpected(err)
		}
	}
	return nil
}

// line returns the next line without its LF and one CR before that. At the end of the input it returns io.EOF if
// nothing was left, io.ErrUnexpectedEOF inside a line. After any error but errLongLine nothing is consumed, so that a
// read that timed out may be tried again.
func (in *input) line() ([]byte, error) {
	scanned := 0
	for {
		b := in.buf[in.pos:in.end]
		if i := bytes.IndexByte(b[scanned:], '\n'); i >= 0 {
			line := b[:scanned+i]
			in.pos += len(line) + 1
			if n := len(line); n > 0 && line[n-1] == '\r' {
				line = line[:n-1]
			}
			if len(line) > in.maxLine {
				return nil, errLongLine
			}
			return line, nil
		}
		scanned = len(b)
		if scanned > in.maxLine+1 { // one more for a CR
			in.pos, in.skipLine = in.end, true
			return nil, errLongLine
		}
		if err := in.fill(); err != nil {
			if in.buffered() > 0 {
				err = unexpected(err)
			}
			return nil, err
		}
	}
}

// block consumes n bytes and the two bytes of line end behind them, which are not looked at, and returns the n.
// It moves the buffer if they are not all there yet: what line returned is then not valid any more.
func (in *input) block(n int) ([]byte, error) {
	need := n + 2
	if in.buffered() < need && need > baseBuffer {
		return in.bigBlock(n)
	}
	for in.buffered() < need {
		if err := in.fill(); err != nil {
			return nil, unexpected(err)
		}
	}
	b := in.buf[in.pos : in.pos+n : in.pos+n]
	in.pos += need
	return b, nil
}

// bigBlock is block for what is better read past the buffer. The announced size is only trusted as far as bytes
// have arrived.
func (in *input) bigBlock(n int) ([]byte, error) {
	need := n + 2
	if in.value == nil {
		var ok bool
		if in.value, ok = values.Get().(*[]byte); !ok {
			in.value = new([]byte)
		}
	}
	v := (*in.value)[:0]
	if cap(v) < min(need, firstValue) {
		v = make([]byte, 0, min(need, firstValue))
	}
	have := min(need, in.buffered())
	v = append(v, in.buf[in.pos:in.pos+have]...)
	in.pos += have
	for len(v) < need {
		if len(v) == cap(v) {
			grown := make([]byte, len(v), min(need, 2*cap(v)))
			copy(grown, v)
			v = grown
		}
		m, err := readSome(in.r, v[len(v):min(cap(v), need)])
		v = v[:len(v)+m]
		*in.value = v
		if err != nil {
			return nil, unexpected(err)
		}
	}
	return v[:n:n], nil
}

// peekBlock reports whether the next n bytes are followed by CRLF, without consuming them.
func (in *input) peekBlock(n int) (bool, error) {
	for in.buffered() < n+2 {
		if err := in.fill(); err != nil {
			return false, unexpected(err)
		}
	}
	return in.buf[in.pos+n] == '\r' && in.buf[in.pos+n+1] == '\n', nil
}

// Read hands out what is buffered and then reads on. It is for connections that leave the line protocol.
func (in *input) Read(p []byte) (int, error) {
	if in.buffered() > 0 {
		n := copy(p, in.buf[in.pos:in.end])
		in.pos += n
		return n, nil
	}
	return in.r.Read(p)
}

// unexpected turns the end of the input into the error for one inside a message.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
