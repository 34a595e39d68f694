package node

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/text"
)

// replyShape tells how to find the end of an answer, and what it can be.
type replyShape uint8

const (
	shapeLine   replyShape = iota // a result or an empty line
	shapeNumber                   // likewise, or a number
	shapeValues                   // VALUE block if found, then END; or an error line
	shapeGat                      // VALUE block without END, NOT_FOUND or an error line
	shapeKeys                     // KEY lines, then END; or one line
)

// shapeOf returns the shape of the answer to a command for one key.
func shapeOf(cmd text.Command) replyShape {
	switch cmd {
	case text.CmdGet, text.CmdGets:
		return shapeValues
	case text.CmdGat:
		return shapeGat
	case text.CmdIncr, text.CmdDecr:
		return shapeNumber
	case text.CmdKeys:
		return shapeKeys
	}
	return shapeLine
}

// readReply reads one answer into c, copying it. What no node answers to such a
// request is an error: nobody knows what it belongs to, nor what comes behind it.
func readReply(r *text.ReplyReader, c *call) error {
	var it text.Item
	if err := r.Next(&it); err != nil {
		return err
	}
	for size := 0; it.Kind == text.KindKey && c.shape == shapeKeys; {
		if size += keyCost(it.Key); size > maxKeysBytes {
			return errTooManyKeys
		}
		c.keys = append(c.keys, slices.Clone(it.Key))
		if err := r.Next(&it); err != nil {
			return err
		}
	}
	switch {
	case it.Kind == text.KindValue && (c.shape == shapeValues || c.shape == shapeGat):
		v := &it.Value
		if !bytes.Equal(v.Key, c.key()) {
			return fmt.Errorf("%w: a value of another key", text.ErrMalformed)
		}
		c.found = true
		c.value = append(c.value[:0], v.Data...)
		c.record = storage.Record{Flags: v.Flags, Expire: v.Expire, Version: v.Version, Value: c.value}
		if c.shape == shapeGat {
			return nil
		}
		reply, err := r.ReadReply()
		if err == nil && reply.Code != text.CodeEnd {
			err = fmt.Errorf("%w: %s instead of END", text.ErrMalformed, reply)
		}
		return err
	case it.Kind == text.KindReply && c.shape.takes(&it.Reply):
		line := it.Reply.Line
		switch {
		case it.Reply.Code == text.CodeEnd:
			line = nil
		case c.shape == shapeNumber && it.Reply.Code == text.CodeOther:
			line = bytes.TrimRight(line, " ")
		}
		c.line = append(c.line[:0], line...)
		return nil
	case it.Kind == text.KindReply:
		return fmt.Errorf("%w: %s", text.ErrMalformed, it.Reply)
	}
	return fmt.Errorf("%w: a %s line where a result was expected", text.ErrMalformed, it.Kind)
}

// takes tells whether a line can be an answer, or its end.
func (s replyShape) takes(reply *text.Reply) bool {
	if reply.Code.IsError() {
		return true
	}
	switch s {
	case shapeValues, shapeKeys:
		return reply.Code == text.CodeEnd
	case shapeGat:
		return reply.Code == text.CodeNotFound
	case shapeNumber:
		if _, ok := reply.Number(); ok {
			return true
		}
	}
	return reply.Code != text.CodeEnd && (reply.Code != text.CodeOther || len(reply.Line) == 0)
}

// key returns the key of a get, gets or gat. Only the space ends one.
func (c *call) key() []byte {
	_, rest, _ := bytes.Cut(c.request, []byte{' '})
	rest = bytes.TrimSuffix(rest, []byte("\r\n"))
	if i := bytes.LastIndexByte(rest, ' '); i >= 0 {
		return rest[:i]
	}
	return rest
}
