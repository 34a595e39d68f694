package text

import (
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/flarekv/flare/proto/topology"
)

// ErrMalformed is wrapped by the errors for replies that do not follow the protocol. What follows on the connection
// cannot be told apart any more: it must be closed.
var ErrMalformed = errors.New("malformed reply")

// Code says which of the known words a reply line begins with.
type Code uint8

const (
	CodeOther Code = iota // no known word: an empty line, the number of incr, VERSION, garbage
	CodeOK
	CodeEnd
	CodeStored
	CodeNotStored
	CodeExists
	CodeNotFound
	CodeDeleted
	CodeFound
	CodeTouched
	CodeError
	CodeClientError
	CodeServerError
)

var codeWords = [...]string{
	CodeOther:       "",
	CodeOK:          "OK",
	CodeEnd:         "END",
	CodeStored:      "STORED",
	CodeNotStored:   "NOT_STORED",
	CodeExists:      "EXISTS",
	CodeNotFound:    "NOT_FOUND",
	CodeDeleted:     "DELETED",
	CodeFound:       "FOUND",
	CodeTouched:     "TOUCHED",
	CodeError:       "ERROR",
	CodeClientError: "CLIENT_ERROR",
	CodeServerError: "SERVER_ERROR",
}

// String returns the word, "" for CodeOther.
func (c Code) String() string { return codeWords[c] }

// IsError reports whether the word refuses a request.
func (c Code) IsError() bool { return c >= CodeError }

// Reply is a reply line without its line end.
type Reply struct {
	Code Code
	Line []byte // the whole line
	Text []byte // what follows the word, or the whole line for CodeOther
}

// Number returns the value a successful incr or decr answers with.
func (r Reply) Number() (uint64, bool) {
	t := tokens{line: r.Line}
	n, ok := parseUint(t.word())
	return n, ok && t.done()
}

// String returns the line for logs.
func (r Reply) String() string { return strconv.Quote(string(r.Line)) }

// Err returns nil for words that are no error, otherwise a *ErrorReply.
func (r Reply) Err() error {
	if !r.Code.IsError() {
		return nil
	}
	return &ErrorReply{Code: r.Code, Text: string(r.Text)}
}

func parseReply(line []byte) Reply {
	t := tokens{line: line}
	w := t.word()
	for c := CodeOK; c <= CodeServerError; c++ {
		if string(w) == codeWords[c] {
			t.spaces()
			return Reply{Code: c, Line: line, Text: line[t.pos:]}
		}
	}
	return Reply{Line: line, Text: line}
}

// ErrorReply is an error the other side answered with. The connection stays usable.
type ErrorReply struct {
	Code Code
	Text string
}

func (e *ErrorReply) Error() string {
	if e.Text == "" {
		return e.Code.String()
	}
	return e.Code.String() + " " + e.Text
}

// Value is a VALUE block of get, gets, gat or dump.
type Value struct {
	Key        []byte
	Flags      uint32
	Data       []byte
	Version    uint64
	HasVersion bool // not with get and gat
	Expire     int64
	HasExpire  bool // only with dump
}

// Kind says what an Item is.
type Kind uint8

const (
	KindReply Kind = iota // a line that ends a reply
	KindValue
	KindKey
	KindNode
	KindMeta
	KindStat
)

var kindWords = [...]string{"reply", "VALUE", "KEY", "NODE", "META", "STAT"}

func (k Kind) String() string { return kindWords[k] }

// Item is one line of a reply, with its data block. Byte slices belong to the ReplyReader and are valid until the
// next item is read.
type Item struct {
	Kind  Kind
	Reply Reply         // KindReply
	Value Value         // KindValue
	Key   []byte        // KindKey
	Node  topology.Node // KindNode
	Name  string        // KindMeta, KindStat
	Text  string        // KindMeta, KindStat: the value
}

// ReplyOptions are the limits of a ReplyReader. The zero value of a field stands for its default.
type ReplyOptions struct {
	MaxValue int // bytes in a data block, default 64 MiB
	MaxLine  int // bytes in a line, default 1 MiB
}

// ReplyReader reads replies, on the side of a client. After any error but a *ErrorReply the connection cannot be
// used further.
type ReplyReader struct {
	in   input
	opts ReplyOptions
	key  []byte
}

// NewReplyReader returns a ReplyReader of replies from r.
func NewReplyReader(r io.Reader, opts ReplyOptions) *ReplyReader {
	if opts.MaxValue <= 0 {
		opts.MaxValue = defaultMaxValue
	}
	opts.MaxValue = min(opts.MaxValue, MaxLength)
	rr := &ReplyReader{opts: opts}
	rr.in.init(r, opts.MaxLine)
	return rr
}

// Buffered returns the number of bytes that were received but not consumed. On a connection on which no answer is
// outstanding it must be 0: C++ nodes may answer requests that asked for silence.
func (r *ReplyReader) Buffered() int { return r.in.buffered() }

// Read reads what follows the last reply as plain bytes, for a connection that leaves the line protocol.
func (r *ReplyReader) Read(p []byte) (int, error) { return r.in.Read(p) }

// Next reads the next line, and the data block if it is a VALUE. A reply to get, gets, keys, dump, node add, meta or
// stats is any number of items up to one of KindReply; one to gat is a single item; all others are a KindReply.
// At a clean end of the input the error is io.EOF.
func (r *ReplyReader) Next(it *Item) error {
	r.in.release()
	*it = Item{}
	line, err := r.in.line()
	if err == errLongLine {
		return fmt.Errorf("%w: line longer than %d bytes", ErrMalformed, r.in.maxLine)
	}
	if err != nil {
		return err
	}
	t := tokens{line: line}
	switch string(t.word()) {
	case "VALUE":
		it.Kind = KindValue
		return r.value(it, t)
	case "KEY":
		it.Kind = KindKey
		it.Key = t.word()
		if len(it.Key) == 0 {
			return fmt.Errorf("%w: KEY line without key", ErrMalformed)
		}
	case "NODE":
		it.Kind = KindNode
		if it.Node, err = parseNode(line); err != nil {
			return fmt.Errorf("%w: %w", ErrMalformed, err)
		}
	case "META":
		it.Kind = KindMeta
		it.pair(t)
	case "STAT":
		it.Kind = KindStat
		it.pair(t)
	default:
		it.Reply = parseReply(line)
	}
	return nil
}

// pair reads: name text
func (it *Item) pair(t tokens) {
	it.Name = string(t.word())
	t.spaces()
	it.Text = string(t.line[t.pos:])
}

// value reads: key flags bytes [version [expire]]
func (r *ReplyReader) value(it *Item, t tokens) error {
	v := &it.Value
	v.Key = t.word()
	flags, ok := parseUint(t.word())
	size, ok1 := parseUint(t.word())
	if len(v.Key) == 0 || !ok || !ok1 || flags > 1<<32-1 || size > MaxLength {
		return fmt.Errorf("%w: VALUE line %q: want VALUE key flags bytes [version [expire]]", ErrMalformed, clip(t.line))
	}
	v.Flags = uint32(flags)
	if w := t.word(); len(w) > 0 {
		if v.Version, v.HasVersion = parseUint(w); !v.HasVersion {
			return fmt.Errorf("%w: VALUE line %q: version %q is not a number", ErrMalformed, clip(t.line), clip(w))
		}
	}
	if w := t.word(); len(w) > 0 {
		if v.Expire, v.HasExpire = parseInt(w); !v.HasExpire {
			return fmt.Errorf("%w: VALUE line %q: expiry time %q is not a number", ErrMalformed, clip(t.line), clip(w))
		}
	}
	if int(size) > r.opts.MaxValue {
		return fmt.Errorf("%w: VALUE of %d bytes: at most %d are accepted", ErrTooLarge, size, r.opts.MaxValue)
	}
	if r.in.buffered() < int(size)+2 {
		// Reading on moves the buffer the key is in.
		r.key = append(r.key[:0], v.Key...)
		v.Key = r.key
	}
	data, err := r.in.block(int(size))
	if err != nil {
		return fmt.Errorf("data block of VALUE: %w", err)
	}
	v.Data = data
	return nil
}

// clip shortens what goes into an error text.
func clip(b []byte) string {
	if len(b) > 80 {
		return string(b[:80]) + "..."
	}
	return string(b)
}

// ReadReply reads the single line that answers a command. Items of any other kind are malformed.
func (r *ReplyReader) ReadReply() (Reply, error) {
	var it Item
	if err := r.Next(&it); err != nil {
		return Reply{}, err
	}
	if it.Kind != KindReply {
		return Reply{}, fmt.Errorf("%w: a %s line where a result was expected", ErrMalformed, it.Kind)
	}
	return it.Reply, nil
}

// ReadOK reads a reply that must be OK. Another known word is a *ErrorReply.
func (r *ReplyReader) ReadOK() error {
	reply, err := r.ReadReply()
	switch {
	case err != nil:
		return err
	case reply.Code == CodeOK:
		return nil
	case reply.Code == CodeOther:
		return fmt.Errorf("%w: %q instead of OK", ErrMalformed, clip(reply.Line))
	}
	return &ErrorReply{Code: reply.Code, Text: string(reply.Text)}
}

// ReadValues reads the answer to get or gets and calls fn for each value; the value is valid during the call only.
// A word other than END is a *ErrorReply. An error of fn is returned at once and leaves the reply half read.
func (r *ReplyReader) ReadValues(fn func(*Value) error) error {
	return r.list(KindValue, func(it *Item) error { return fn(&it.Value) })
}

// ReadNodes reads the answer to node add. A word other than END is a *ErrorReply.
func (r *ReplyReader) ReadNodes() ([]topology.Node, error) {
	var nodes []topology.Node
	err := r.list(KindNode, func(it *Item) error {
		if len(nodes) == maxNodes {
			return fmt.Errorf("%w: more than %d NODE lines", ErrMalformed, maxNodes)
		}
		nodes = append(nodes, it.Node)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return nodes, nil
}

// ReadMeta reads the answer to meta. A word other than END is a *ErrorReply.
func (r *ReplyReader) ReadMeta() (topology.Meta, error) {
	p := metaParser{meta: topology.DefaultMeta()}
	err := r.list(KindMeta, func(it *Item) error {
		if err := p.add(it.Name, it.Text); err != nil {
			return fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		return nil
	})
	if err != nil {
		return topology.Meta{}, err
	}
	m, err := p.done()
	if err != nil {
		return m, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return m, nil
}

// list reads items of one kind up to END.
func (r *ReplyReader) list(kind Kind, fn func(*Item) error) error {
	var it Item
	for {
		if err := r.Next(&it); err != nil {
			return unexpected(err)
		}
		switch {
		case it.Kind == kind:
			if err := fn(&it); err != nil {
				return err
			}
		case it.Kind != KindReply:
			return fmt.Errorf("%w: a %s line in a list of %s lines", ErrMalformed, it.Kind, kind)
		case it.Reply.Code == CodeEnd:
			return nil
		case it.Reply.Code == CodeOther:
			return fmt.Errorf("%w: %q in a list of %s lines", ErrMalformed, clip(it.Reply.Line), kind)
		default:
			return &ErrorReply{Code: it.Reply.Code, Text: string(it.Reply.Text)}
		}
	}
}
