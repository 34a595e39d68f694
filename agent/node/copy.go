package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/text"
)

// A C++ node streams no log. It is copied from with dump, key by key, and from the
// moment that its map shows the copy it sends each write that it has executed to
// the copy as well: a set with the whole value and its version, a delete with the
// version, or a touch. Versions order what comes both ways.

const (
	// bulkChanges is how many changes are made before the first is waited for; the
	// committer makes one batch of those that wait for it.
	bulkChanges = 1024
	// copyRetryPause is the time between two attempts to tell the index something,
	// and to copy after all attempts that are counted have failed.
	copyRetryPause = 500 * time.Millisecond
	// copyGiveUpAfter is the least time of failing before a node that cannot copy
	// says so: as long as the original tries to connect.
	copyGiveUpAfter = 4500 * time.Millisecond
)

// copying is what the writes that arrive during a copy need to know of it.
type copying struct {
	seen atomic.Pointer[keySet] // keys of the copy under way; nil if nobody asks for them
	lost chan struct{}          // capacity 1: a write was not executed here
	s    *Server
}

// missed tells that a write of the master could not be executed here. The master
// takes no notice and sends it once only, so that another copy is needed.
func (c *copying) missed(err error) {
	c.s.limited.warn(c.s.logger, "write of the copied node was missed, copying again", "reason", "write_missed", "error", err)
	select {
	case c.lost <- struct{}{}:
	default:
	}
}

// copiedForm tells whether a request has one of the forms in which a master sends
// on what it has executed.
func copiedForm(req *text.Request) bool {
	switch req.Command {
	case text.CmdSet, text.CmdDelete:
		return req.HasVersion && req.Version > 0
	case text.CmdTouch:
		return true
	}
	return false
}

// enterCopy passes the gate for a request that comes from the node that this one
// copies. One that is not of the form of an executed write is a client's and was
// sent by a node that takes this one for the master: a map that says so is coming.
func (s *Server) enterCopy(req *text.Request, partition int) (gateState, string) {
	if !copiedForm(req) {
		if s.gate.copying() {
			return gateWait, "copying"
		}
		return gateRefuse, reasonRoutingLoop
	}
	state, reason := s.gate.enterCopy(partition)
	if state == gateOpen {
		// Before the write, so that removeUnseen meets the key here or the write later.
		s.copying.seen.Load().add(req.Key())
	}
	return state, reason
}

// dumpFrom asks another node for the records of a partition and stores those that
// are newer than what is here. It returns nil only when all have come.
func (s *Server) dumpFrom(ctx context.Context, node string, d text.Dump, seen *keySet, progress func(bytes int)) error {
	conn, err := s.dial(ctx, node)
	if err != nil {
		return &replication.Error{Reason: "connection_failed", Err: fmt.Errorf("connect: %w", err)}
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	task := s.tasks.register(s.clock(), func() taskInfo {
		return taskInfo{kind: taskReconstruction, peer: node, op: opName(text.CmdDump), state: taskExecuting}
	}, func() { conn.Close() })
	defer s.tasks.unregister(task)

	patience := s.live.Load().NetReadTimeout
	conn.SetWriteDeadline(time.Now().Add(peerDialTimeout))
	if _, err := conn.Write(text.AppendRequest(nil, &text.Request{Command: text.CmdDump, Dump: d}, nil)); err != nil {
		return &replication.Error{Reason: "connection_failed", Err: fmt.Errorf("ask for a dump: %w", err)}
	}

	r := text.NewReplyReader(&patientConn{conn, patience, &s.counters.traffic.read}, text.ReplyOptions{MaxValue: text.MaxLength})
	changes := newBulk(s.db)
	defer changes.settle()
	var it text.Item
	for {
		if err := r.Next(&it); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return &replication.Error{Reason: "dump_interrupted", Err: fmt.Errorf("dump broke off: %w", err)}
		}
		switch {
		case it.Kind == text.KindValue:
		case it.Kind == text.KindReply && it.Reply.Code == text.CodeEnd:
			return changes.settle()
		case it.Kind == text.KindReply && it.Reply.Code.IsError():
			return &replication.Error{Reason: "dump_refused", Err: fmt.Errorf("dump ended with %s", it.Reply)}
		default:
			return &replication.Error{Reason: "protocol_error", Err: fmt.Errorf("dump: a %s line %s", it.Kind, it.Reply)}
		}
		v := &it.Value
		seen.add(v.Key)
		progress(len(v.Key) + len(v.Data))
		record := storage.Record{Flags: v.Flags, Expire: v.Expire, Version: v.Version, Value: v.Data}
		now := s.clock().Unix()
		if err := changes.update(v.Key, func(known storage.Entry) storage.Change { return decideDump(known, record, now) }); err != nil {
			return err
		}
	}
}

// A bulk makes many changes of which nobody waits for any one.
type bulk struct {
	pipe    *storage.Pipeline
	commits []*storage.Commit
	changed uint64 // committed
}

func newBulk(db *storage.DB) *bulk { return &bulk{pipe: db.NewPipeline(nil)} }

// update makes a change. An error may be of an earlier one.
func (b *bulk) update(key []byte, fn func(storage.Entry) storage.Change) error {
	c, err := b.pipe.Update(key, fn)
	if err != nil {
		return errors.Join(&replication.Error{Reason: "store_failed", Err: err}, b.settle())
	}
	if c == nil {
		return nil
	}
	if b.commits = append(b.commits, c); len(b.commits) >= bulkChanges {
		return b.settle()
	}
	return nil
}

// settle waits until all changes are committed.
func (b *bulk) settle() (failure error) {
	b.pipe.Wait()
	for _, c := range b.commits {
		if _, err := c.Result(); err != nil {
			failure = &replication.Error{Reason: "store_failed", Err: err}
		} else {
			b.changed++
		}
	}
	b.commits = b.commits[:0]
	b.pipe.Reset()
	return failure
}

// A patientConn gives each read the same time.
type patientConn struct {
	net.Conn
	patience time.Duration
	n        *atomic.Uint64
}

func (c *patientConn) Read(p []byte) (int, error) {
	c.SetReadDeadline(time.Now().Add(c.patience))
	n, err := c.Conn.Read(p)
	c.n.Add(uint64(n))
	return n, err
}

// watchKeys begins to note the keys that a copy contains or that are written
// meanwhile. Where there is nothing yet it is not worth the memory, and the set nil.
func (s *Server) watchKeys(ctx context.Context) (*keySet, error) {
	scan := s.db.Scan(storage.ScanOptions{KeysOnly: true})
	var seen *keySet
	if scan.Next(ctx) {
		seen = newKeySet()
	}
	s.copying.seen.Store(seen)
	if err := scan.Err(); err != nil {
		return nil, &replication.Error{Reason: "read_failed", Err: err}
	}
	return seen, nil
}

// removeUnseen removes the records that a complete copy did not contain and that
// nobody has written since it began: the copied node does not have them any more.
func (s *Server) removeUnseen(ctx context.Context, seen *keySet) (removed uint64, err error) {
	if seen == nil {
		return 0, nil
	}
	changes := newBulk(s.db)
	defer changes.settle()
	scan := s.db.Scan(storage.ScanOptions{KeysOnly: true})
	for scan.Next(ctx) {
		key := scan.Key()
		if seen.has(key) {
			continue
		}
		err := changes.update(key, func(e storage.Entry) storage.Change {
			if !e.Found || seen.has(key) {
				return storage.Change{}
			}
			// Without a tombstone: what comes for this key from now on is newer.
			return storage.Change{Op: storage.Delete}
		})
		if err != nil {
			return changes.changed, err
		}
	}
	if err := scan.Err(); err != nil {
		return changes.changed, &replication.Error{Reason: "read_failed", Err: err}
	}
	err = changes.settle()
	return changes.changed, err
}

// dumpRequest is what to ask another node for.
func (s *Server) dumpRequest(d duty, share int) text.Dump {
	o := s.live.Load()
	req := text.Dump{
		Partition: d.partition, Partitions: d.partitions,
		Wait:      o.ReconstructionInterval.Microseconds(),
		Bandwidth: int64(o.ReconstructionBwlimit),
	}
	if req.Bandwidth > 0 {
		req.Bandwidth = max(1, req.Bandwidth/int64(share))
	}
	return req
}

// copyEpoch is the epoch in which a copy is written: that of the map, so that the
// next one, of a promotion, is newer. A partition that is being added has none yet
// and gets 1 when it is there, as its first master has then.
func copyEpoch(d duty) uint64 { return max(d.epoch, 1) }

// untilAnswered repeats a message to the index until it is answered, with
// whatever, or ctx ends.
func (s *Server) untilAnswered(ctx context.Context, what string, tell func(context.Context) error) error {
	for pause := copyRetryPause; ; pause = min(2*pause, 8*copyRetryPause) {
		err := tell(ctx)
		var refused *text.ErrorReply
		switch {
		case err == nil, ctx.Err() != nil:
			return err
		case errors.As(err, &refused):
			s.logger.Warn("index refused what this node says", "message", what, "reason", "index_refused", "error", err)
			return err
		}
		s.limited.warn(s.logger, "index was not reached, trying again", "message", what, "reason", "index_unreachable", "error", err)
		if rest(ctx, pause) != nil {
			return ctx.Err()
		}
	}
}

// A slaveCopier copies a master that has no log to stream.
type slaveCopier struct {
	s     *Server
	duty  duty
	begun bool // the gate lets the master's writes in
}

var _ replication.Copier = (*slaveCopier)(nil)

// Copy implements replication.Copier.
func (c *slaveCopier) Copy(ctx context.Context, progress func(bytes int)) error {
	s := c.s
	if !c.begun {
		lsn, err := s.db.BeginCopy(ctx, copyEpoch(c.duty), c.duty.partition)
		if err != nil {
			return &replication.Error{Reason: "store_failed", Err: err}
		}
		c.begun = true
		s.roles.openCopy(c.duty.partition, lsn.Epoch)
	}
	select {
	case <-s.copying.lost: // before now, so that this copy has it
	default:
	}
	seen, err := s.watchKeys(ctx)
	if err != nil {
		return err
	}
	defer s.copying.seen.Store(nil)
	if now := dutyOf(s.maps.table()); now.partition == c.duty.partition {
		c.duty.partitions = now.partitions
	}
	if err := s.dumpFrom(ctx, c.duty.master, s.dumpRequest(c.duty, 1), seen, progress); err != nil {
		return err
	}
	removed, err := s.removeUnseen(ctx, seen)
	if err != nil {
		return err
	}
	s.logger.Info("master copied by dump", "master", c.duty.master, "partition", c.duty.partition, "removed", removed)
	// An index that refuses has other plans for this node, and will send them.
	if err := s.untilAnswered(ctx, "node state active", s.index.copied); ctx.Err() != nil {
		return err
	}
	return nil
}

// Follow implements replication.Copier.
func (c *slaveCopier) Follow(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c.s.copying.lost:
		return &replication.Error{Reason: "write_missed", Err: errors.New("a write of the master could not be executed here")}
	}
}

// End implements replication.Copier.
func (c *slaveCopier) End() {
	if c.begun {
		c.begun = false
		c.s.roles.closeCopy()
	}
}
