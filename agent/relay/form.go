package relay

import (
	"bytes"

	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/text"
)

// A form is the command that an operation is sent as.
type form uint8

const (
	formSet    form = iota // <list>set key flags exptime bytes version
	formTouch              // <list>touch key exptime
	formDelete             // <list>delete key exptime version
	formFlush              // flush_all
)

func formOf(kind storage.OpKind) form {
	switch kind {
	case storage.OpTouch:
		return formTouch
	case storage.OpDelete:
		return formDelete
	case storage.OpFlush:
		return formFlush
	}
	return formSet
}

// appendItem appends the request of an operation. now is the time in unix
// seconds: a delete carries the end of its window only while that lies ahead, for
// a past one would be the same as none.
func appendItem(dst []byte, op *storage.Operation, f form, via []string, now int64) []byte {
	req := text.Request{Keys: [][]byte{op.Key}}
	switch f {
	case formSet:
		req.Command = text.CmdSet
		req.Flags, req.Version, req.Data = op.Record.Flags, op.Record.Version, op.Record.Value
		req.Exptime = max(op.Record.Expire, 0)
	case formTouch:
		req.Command = text.CmdTouch
		req.Exptime = max(op.Record.Expire, 0)
	case formDelete:
		req.Command = text.CmdDelete
		req.Version = op.Tombstone.Version
		if op.Tombstone.Until > now {
			req.Exptime = op.Tombstone.Until
		}
	case formFlush:
		// It is about the peer's own data and is passed on to nobody.
		return append(dst, "flush_all\r\n"...)
	}
	return text.AppendRequest(dst, &req, via)
}

// A verdict is what an answer means for an operation.
type verdict uint8

const (
	accepted verdict = iota // the peer has it, or something newer
	asSet                   // send the whole record instead
	again                   // not now
	refused                 // never: it is given up
)

// judge tells what to make of an answer. A peer that cannot execute an operation
// now says SERVER_ERROR: its disk is full, its partition has no master, it is
// leaving. All of that passes, so that the operation is sent again. What the peer
// does not understand it will not understand later.
func judge(f form, reply text.Reply) verdict {
	switch reply.Code {
	case text.CodeStored, text.CodeNotStored:
		// Not stored: the peer has this version or a newer one already.
		if f == formSet {
			return accepted
		}
	case text.CodeTouched:
		if f == formTouch {
			return accepted
		}
	case text.CodeDeleted:
		if f == formDelete {
			return accepted
		}
	case text.CodeNotFound:
		switch f {
		case formDelete:
			return accepted
		case formTouch:
			// The peer has not got the record yet: a copy that brings it may hold it
			// as it was before.
			return asSet
		}
	case text.CodeOK:
		if f == formFlush {
			return accepted
		}
	case text.CodeServerError:
		if bytes.Equal(reply.Line, tooLarge) {
			return refused
		}
		return again
	}
	return refused
}

var tooLarge = bytes.TrimSuffix([]byte(text.ReplyTooLarge), []byte("\r\n"))
