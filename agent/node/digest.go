package node

import (
	"context"
	"strconv"
	"time"

	"github.com/flarekv/flare/agent/storage"
	"github.com/flarekv/flare/proto/text"
	"github.com/flarekv/flare/proto/topology"
)

// digest answers the command by which two clusters can be compared: it sums up the
// records of this node's partition that a client could read, split up by whatever
// mapping of keys to partitions is asked for, which need not be that of this cluster.
//
//	PROGRESS <records>                                        now and then
//	DIGEST <partition> <bucket> <records> <bytes> <checksum>  for each part that is not empty
//	END
//
// or SERVER_ERROR <reason>: <words>. The sums are those of no single moment: what is
// written meanwhile is in them or not. As with dumps there is one at a time in a node.
func (c *conn) digest(req *text.Request) bool {
	if !c.s.dumping.CompareAndSwap(false, true) {
		c.out = append(c.out, text.ReplyDatabaseBusy...)
		return true
	}
	defer c.s.dumping.Store(false)
	if c.flush() != nil {
		return false
	}
	told := time.Now()
	sums, err := c.s.digestOf(c.s.ctx, req.Digest, func(records uint64) error {
		if c.interrupted() {
			return errInterrupted
		}
		if now := time.Now(); now.Sub(told) >= progressInterval {
			told = now
			c.out = appendNumbers(append(c.out, "PROGRESS"...), records)
			return c.flush()
		}
		return nil
	})
	if c.lastFlush != nil {
		return false
	}
	if err != nil {
		if reason := reasonOf(err); reason != reasonNoPartition {
			c.s.logger.Warn("digest not made", "reason", reason, "error", err)
		}
		c.out = text.AppendServerError(c.out, reasonOf(err)+": "+err.Error())
		return !c.killed.Load()
	}
	for i, d := range sums {
		if d == (topology.Digest{}) {
			continue
		}
		c.out = strconv.AppendInt(append(c.out, "DIGEST "...), int64(i/req.Digest.Buckets), 10)
		c.out = strconv.AppendInt(append(c.out, ' '), int64(i%req.Digest.Buckets), 10)
		c.out = appendNumbers(c.out, d.Records, d.Bytes, d.Checksum)
		if len(c.out) >= flushSize && c.flush() != nil {
			return false
		}
	}
	c.out = append(c.out, text.ReplyEnd...)
	return !c.killed.Load()
}

// digestOf makes the sums, bucket by bucket and partition by partition. report is
// called often; its error ends the work.
func (s *Server) digestOf(ctx context.Context, by text.Digest, report func(records uint64) error) ([]topology.Digest, error) {
	own, ok := ownershipOf(s.maps.table())
	if !ok {
		return nil, refuseWork(reasonNoPartition, "this node has no partition, so it has no records of its own")
	}
	resolver, err := topology.NewResolver(by.Meta)
	if err != nil {
		return nil, err
	}
	began := s.clock()
	sums := make([]topology.Digest, by.Partitions*by.Buckets)
	var g topology.Digester
	scan := s.db.Scan(storage.ScanOptions{})
	for scan.Next(ctx) {
		key := scan.Key()
		if r := scan.Record(); own.owns(key) && !expired(r, s.clock().Unix()) {
			d, spread := g.Record(key, r.Flags, r.Expire, r.Version, r.Value)
			i := resolver.Partition(key, by.Partitions)*by.Buckets + int(spread%uint32(by.Buckets))
			sums[i] = sums[i].Plus(d)
		}
		if scan.Count()%orphanChunk != 0 {
			continue
		}
		if now, ok := ownershipOf(s.maps.table()); !ok || now != own {
			return nil, refuseWork(reasonMapChanging, "the node map changed")
		}
		if err := report(scan.Count()); err != nil {
			return nil, err
		}
	}
	if err := scan.Err(); err != nil {
		return nil, err
	}
	s.logger.Info("digest made", "partition", own.partition, "records", scan.Count(), "took", s.clock().Sub(began).String())
	return sums, nil
}
