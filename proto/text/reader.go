package text

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/flarekv/flare/proto/topology"
)

var (
	// ErrBinary is returned for a request that begins with the magic byte of memcached's binary protocol. The
	// connection cannot be used further.
	ErrBinary = errors.New("binary protocol is not supported")

	// ErrTooLarge is what errors.Is finds in the error for a data block above the limit.
	ErrTooLarge = errors.New("value too large")
)

// ProtocolError says why a request was refused. The connection stays usable: Reply, if not empty, is sent, and the
// next request is read.
type ProtocolError struct {
	Reply   string // the complete line to answer with, "" for none
	Reason  Reason
	Command Command // what was refused, CmdNone if not even that is known
}

// Reason is a machine-readable cause of a refusal.
type Reason string

const (
	ReasonUnknownCommand Reason = "unknown_command"
	ReasonBadArguments   Reason = "bad_arguments"
	ReasonBadOption      Reason = "bad_option"
	ReasonKeyTooLong     Reason = "key_too_long"
	ReasonLineTooLong    Reason = "line_too_long"
	ReasonNulByte        Reason = "nul_byte"
	ReasonValueTooLarge  Reason = "value_too_large"
	ReasonTooManyHops    Reason = "too_many_hops"
	ReasonBadNodeList    Reason = "bad_node_list"
)

func (e *ProtocolError) Error() string {
	if e.Command == CmdNone {
		return fmt.Sprintf("request refused: %s", e.Reason)
	}
	return fmt.Sprintf("%s refused: %s", e.Command, e.Reason)
}

// Is makes errors.Is(err, ErrTooLarge) work.
func (e *ProtocolError) Is(target error) bool {
	return target == ErrTooLarge && e.Reason == ReasonValueTooLarge
}

// Options are the limits of a Reader. The zero value of a field stands for its default.
type Options struct {
	Commands CommandSet // what is answered, default all
	MaxValue int        // bytes in a data block, default 64 MiB
	MaxLine  int        // bytes in a command line, default 1 MiB
}

const (
	maxHops  = 64       // node keys in a <list>
	maxNodes = 64 << 10 // NODE lines behind node sync
)

// Reader reads requests, on the side of a server. It reads ahead; a server that answers through a buffer should
// flush that before each Read of the underlying reader, or when Buffered is 0.
type Reader struct {
	in   input
	opts Options

	key    []byte // copy of the key while its data block is read
	prefix []byte // the last <list> seen and what it said: peers send the same one again and again
	via    []string

	// rejected is the length announced by a refused storage command, if its block is not yet known to be there;
	// -1 if there is none.
	rejected int
}

// NewReader returns a Reader of requests from r.
func NewReader(r io.Reader, opts Options) *Reader {
	if opts.Commands == 0 {
		opts.Commands = ^CommandSet(0)
	}
	rd := &Reader{opts: opts, rejected: -1}
	rd.SetMaxValue(opts.MaxValue)
	rd.in.init(r, opts.MaxLine)
	rd.opts.MaxLine = rd.in.maxLine
	return rd
}

// SetMaxValue changes Options.MaxValue for the data blocks that are announced from now on.
func (r *Reader) SetMaxValue(n int) {
	if n <= 0 {
		n = defaultMaxValue
	}
	r.opts.MaxValue = min(n, MaxLength)
}

// Buffered returns the number of bytes that were received but not consumed.
func (r *Reader) Buffered() int { return r.in.buffered() }

// Read reads what follows the last request as plain bytes, for a connection that leaves the line protocol.
func (r *Reader) Read(p []byte) (int, error) { return r.in.Read(p) }

// ReadRequest reads the next request into req. A *ProtocolError means that it was refused and the connection goes
// on; ErrBinary and any other error end it. At a clean end the error is io.EOF.
//
// When a storage command is refused, the data block it announced is thrown away with the next ReadRequest, after the
// refusal could be answered; so are the remains of a too long line.
func (r *Reader) ReadRequest(req *Request) error {
	req.Reset()
	r.in.release()
	if err := r.skipRejected(); err != nil {
		return err
	}
	if r.in.buffered() == 0 {
		if err := r.in.fill(); err != nil {
			return err
		}
	}
	if r.in.buf[r.in.pos] == 0x80 {
		return ErrBinary
	}
	line, err := r.in.line()
	if err == errLongLine {
		return &ProtocolError{Reply: ReplyError, Reason: ReasonLineTooLong}
	}
	if err != nil {
		return err
	}
	p := parser{tokens: tokens{line: line}, req: req, reader: r}
	if e := p.parse(); e != nil {
		e.Command = req.Command
		req.Reset()
		return e
	}
	switch {
	case req.Command.HasData():
		return r.readData(req, p.size)
	case req.Command == CmdNodeSync:
		return r.readNodes(req)
	}
	return nil
}

// skipRejected throws away what belongs to the last, refused request.
func (r *Reader) skipRejected() error {
	if n := r.rejected; n >= 0 {
		// The sender may have read the refusal before it came to send the block, and sent the next command instead. A
		// block is recognised by the line end behind it, as far as that can be seen.
		block := true
		if n <= r.in.maxLine {
			if r.in.buffered() == 0 {
				if err := r.in.fill(); err != nil {
					return err
				}
			}
			var err error
			if block, err = r.in.peekBlock(n); err != nil {
				return err
			}
		}
		if block {
			r.in.skip = int64(n) + 2
		}
		r.rejected = -1
	}
	return r.in.discard()
}

func (r *Reader) readData(req *Request, size int) error {
	if size > r.opts.MaxValue {
		e := &ProtocolError{Reply: ReplyTooLarge, Reason: ReasonValueTooLarge, Command: req.Command}
		if req.NoReply {
			e.Reply = ""
		}
		r.in.skip = int64(size) + 2
		req.Reset()
		return e
	}
	if r.in.buffered() < size+2 {
		// Reading on moves the buffer the key is in.
		r.key = append(r.key[:0], req.Keys[0]...)
		req.Keys[0] = r.key
	}
	data, err := r.in.block(size)
	if err != nil {
		return fmt.Errorf("data block of %s: %w", req.Command, err)
	}
	req.Data = data
	return nil
}

// readNodes reads the list behind node sync. It ends at a bad line, as C++ does it: nothing tells how much of what
// follows is still the list.
func (r *Reader) readNodes(req *Request) error {
	var nodes []topology.Node
	for {
		line, err := r.in.line()
		if err != nil && err != errLongLine {
			return fmt.Errorf("list of node sync: %w", unexpected(err))
		}
		if err == nil {
			line = bytes.TrimRight(line, " ")
			if string(line) == "END" {
				req.Nodes = nodes
				return nil
			}
			var n topology.Node
			if n, err = parseNode(line); err == nil && len(nodes) < maxNodes {
				nodes = append(nodes, n)
				continue
			}
		}
		req.Reset()
		return &ProtocolError{Reply: ReplyFormatError, Reason: ReasonBadNodeList, Command: CmdNodeSync}
	}
}
