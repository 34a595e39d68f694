package node

import (
	"errors"
	"time"

	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

// replyCanceled ends a dump whose database was taken away, or could not be read.
const replyCanceled = "SERVER_ERROR iteration canceled\r\n"

var (
	errKilled      = errors.New("killed by the operator")
	errInterrupted = errors.New("interrupted")
)

// dump answers dump and dump_key with this node's own records; false ends the
// connection. Of all that is sent only a little is held at a time, and nothing of
// the database while the reader keeps us waiting. As in the original there is one
// at a time in a node.
func (c *conn) dump(req *text.Request) bool {
	if !c.s.dumping.CompareAndSwap(false, true) {
		c.out = append(c.out, text.ReplyDatabaseBusy...)
		return true
	}
	defer c.s.dumping.Store(false)
	c.s.dumped.begin(time.Now(), c.s.db.Position().LSN)
	began := c.s.clock()
	scan, err := c.dumpRecords(req)
	switch {
	case err == nil:
		c.out = append(c.out, text.ReplyEnd...)
	case c.lastFlush != nil:
		return false
	case errors.Is(err, errInterrupted):
		c.out = append(c.out, text.ReplyInterrupted...)
	default:
		c.out = append(c.out, replyCanceled...)
	}
	c.s.logger.Info("dump ended", "command", req.Command.String(), "to", c.nc.RemoteAddr().String(),
		"records", scan.Count(), "bytes", scan.Bytes(), "took", c.s.clock().Sub(began).String(), "error", err)
	return !c.killed.Load()
}

// dumpRecords appends the records asked for and writes them in pieces.
func (c *conn) dumpRecords(req *text.Request) (*storage.Scan, error) {
	d := req.Dump
	keysOnly := req.Command == text.CmdDumpKey
	resolver := c.s.maps.table().resolver
	pace := newPacer(d.Wait, d.Bandwidth)
	scan := c.s.db.Scan(storage.ScanOptions{KeysOnly: keysOnly})
	for scan.Next(c.s.ctx) {
		if c.interrupted() {
			return scan, errInterrupted
		}
		key := scan.Key()
		if d.Partitions > 0 && d.Partition != topology.NoPartition && resolver.Partition(key, d.Partitions) != d.Partition {
			continue
		}
		before := len(c.out)
		if keysOnly {
			c.out = text.AppendKey(c.out, key)
		} else {
			r := scan.Record()
			if expired(r, c.s.clock().Unix()) {
				continue
			}
			c.out = text.AppendDumpValue(c.out, key, r.Flags, r.Value, r.Version, r.Expire)
		}
		pause := pace.after(len(c.out)-before, time.Now())
		if pause == 0 && len(c.out) < flushSize {
			continue
		}
		if err := c.flush(); err != nil {
			return scan, err
		}
		if !c.sleep(pause) {
			return scan, errInterrupted
		}
	}
	return scan, scan.Err()
}

// interrupted tells whether a long answer has to end.
func (c *conn) interrupted() bool {
	return c.killed.Load() || c.draining.Load() || c.s.ctx.Err() != nil
}

// sleep pauses a long answer; false means that it was interrupted.
func (c *conn) sleep(d time.Duration) bool {
	for d > 0 {
		step := min(d, 100*time.Millisecond)
		select {
		case <-time.After(step):
		case <-c.s.ctx.Done():
		}
		if c.interrupted() {
			return false
		}
		d -= step
	}
	return true
}
