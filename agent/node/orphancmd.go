package node

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/flarekv/flare/proto/text"
)

// orphans answers orphan_scan and orphan_purge; false ends the connection.
//
//	PROGRESS <keys> <orphans> <bytes>   now and then
//	ORPHANS <count> <bytes>             of a scan, at the end
//	PURGED <count> <bytes>              of a purge, at the end
//	END
//
// or SERVER_ERROR <reason>: <words>, which also ends one that had begun.
func (c *conn) orphans(req *text.Request) bool {
	if c.flush() != nil {
		return false
	}
	told := time.Now()
	report := func(p orphanProgress) error {
		if c.interrupted() {
			return errInterrupted
		}
		if now := time.Now(); now.Sub(told) >= progressInterval {
			told = now
			c.out = appendNumbers(append(c.out, "PROGRESS"...), p.keys, p.orphans, p.bytes)
			return c.flush()
		}
		return nil
	}
	var p orphanProgress
	var err error
	word := "ORPHANS"
	if req.Command == text.CmdOrphanScan {
		p, err = c.s.scanOrphans(c.s.ctx, report)
	} else {
		word = "PURGED"
		p, err = c.s.purgeOrphans(c.s.ctx, int(req.Rate), report)
	}
	var refused *workRefusal
	switch {
	case c.lastFlush != nil:
		return false
	case errors.As(err, &refused):
		c.out = text.AppendServerError(c.out, oneLine(err.Error()))
	case err != nil:
		c.out = text.AppendServerError(c.out, oneLine(reasonOf(err)+": "+err.Error()))
	default:
		c.out = appendNumbers(append(c.out, word...), p.orphans, p.bytes)
		c.out = append(c.out, text.ReplyEnd...)
	}
	return !c.killed.Load()
}

func appendNumbers(dst []byte, numbers ...uint64) []byte {
	for _, n := range numbers {
		dst = strconv.AppendUint(append(dst, ' '), n, 10)
	}
	return append(dst, "\r\n"...)
}

// oneLine keeps an error from ending its line early.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, s)
}
