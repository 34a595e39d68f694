package node

import (
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/flarekv/flare/proto/text"
)

// counters count since the start of the process.
type counters struct {
	traffic traffic

	totalItems       atomic.Uint64
	totalConnections atomic.Uint64
	cmdGet, cmdSet   atomic.Uint64

	getHits, getMisses           atomic.Uint64
	deleteHits, deleteMisses     atomic.Uint64
	incrHits, incrMisses         atomic.Uint64
	decrHits, decrMisses         atomic.Uint64
	casHits, casMisses, casExist atomic.Uint64
	touchHits, touchMisses       atomic.Uint64
}

// get counts one key that was asked for.
func (c *counters) get(found bool) {
	c.cmdGet.Add(1)
	hitOrMiss(found, &c.getHits, &c.getMisses)
}

// write counts a write request, wherever it is executed.
func (c *counters) write(cmd text.Command) {
	switch cmd {
	case text.CmdIncr, text.CmdDecr, text.CmdDelete:
	default:
		c.cmdSet.Add(1)
	}
}

// executed counts a write that was executed here.
func (c *counters) executed(cmd text.Command, v verdict) {
	found := v != verdictNotFound
	switch cmd {
	case text.CmdIncr:
		hitOrMiss(found, &c.incrHits, &c.incrMisses)
	case text.CmdDecr:
		hitOrMiss(found, &c.decrHits, &c.decrMisses)
	case text.CmdDelete:
		hitOrMiss(found, &c.deleteHits, &c.deleteMisses)
	case text.CmdTouch:
		hitOrMiss(found, &c.touchHits, &c.touchMisses)
	case text.CmdGat:
	default:
		if v == verdictStored {
			c.totalItems.Add(1)
		}
		if cmd == text.CmdCas {
			switch v {
			case verdictStored:
				c.casHits.Add(1)
			case verdictExists:
				c.casExist.Add(1)
			case verdictNotFound:
				c.casMisses.Add(1)
			}
		}
	}
}

func hitOrMiss(hit bool, hits, misses *atomic.Uint64) {
	if hit {
		hits.Add(1)
	} else {
		misses.Add(1)
	}
}

// appendStats appends the answer to plain stats, in the order of the original.
func (s *Server) appendStats(dst []byte) ([]byte, error) {
	st, err := s.db.Stats()
	if err != nil {
		return dst, err
	}
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return dst, fmt.Errorf("resource usage: %w", err)
	}
	now, c := s.clock(), &s.counters
	num := func(name string, v uint64) { dst = text.AppendStat(dst, name, strconv.FormatUint(v, 10)) }
	cpu := func(name string, t syscall.Timeval) {
		dst = text.AppendStat(dst, name, fmt.Sprintf("%d.%06d", t.Sec, t.Usec))
	}
	connections := uint64(s.connections())
	num("pid", uint64(os.Getpid()))
	num("uptime", uint64(max(0, now.Sub(s.started)/time.Second)))
	num("time", uint64(now.Unix()))
	dst = text.AppendStat(dst, "version", s.version)
	num("pointer_size", 64)
	cpu("rusage_user", usage.Utime)
	cpu("rusage_system", usage.Stime)
	items := st.Keys
	if n, ok := s.items.count(s.ctx, s.db, st); ok {
		items = n
	}
	num("curr_items", items)
	num("total_items", c.totalItems.Load())
	num("bytes", st.Bytes)
	num("curr_connections", connections)
	num("total_connections", c.totalConnections.Load())
	num("connection_structures", 0)
	num("cmd_get", c.cmdGet.Load())
	num("cmd_set", c.cmdSet.Load())
	num("get_hits", c.getHits.Load())
	num("get_misses", c.getMisses.Load())
	num("delete_hits", c.deleteHits.Load())
	num("delete_misses", c.deleteMisses.Load())
	num("incr_hits", c.incrHits.Load())
	num("incr_misses", c.incrMisses.Load())
	num("decr_hits", c.decrHits.Load())
	num("decr_misses", c.decrMisses.Load())
	num("cas_hits", c.casHits.Load())
	num("cas_misses", c.casMisses.Load())
	num("cas_badval", c.casExist.Load())
	num("touch_hits", c.touchHits.Load())
	num("touch_misses", c.touchMisses.Load())
	num("evictions", 0)
	num("bytes_read", c.traffic.read.Load())
	num("bytes_written", c.traffic.written.Load())
	num("limit_maxbytes", 0)
	num("threads", connections)
	num("pool_threads", 0)
	num("node_map_version", s.maps.mapVersion())
	num("expiry_sweep_walks", s.sweeper.walks.Load())
	num("expiry_sweep_removed", s.sweeper.removed.Load())
	num("expiry_sweep_removed_bytes", s.sweeper.bytes.Load())
	num("record_cache_limit_bytes", st.Cache.Limit)
	num("record_cache_entries", st.Cache.Entries)
	num("record_cache_hits", st.Cache.Hits)
	num("record_cache_misses", st.Cache.Misses)
	last, handovers, failed := s.handing.snapshot()
	num("handover_count", handovers)
	num("handover_failed", failed)
	num("handover_last_pause_ms", uint64(last.paused.Milliseconds()))
	inSync, least := s.source.InSync()
	num("replication_in_sync_nodes", uint64(inSync))
	num("replication_min_in_sync", uint64(least))
	dst = s.appendLeaseStats(dst)
	dst = s.appendLogStats(dst, st)
	dst = s.appendClusterStats(dst)
	return append(dst, text.ReplyEnd...), nil
}

// appendNodeStats appends the answer to stats nodes: the table in force.
func (s *Server) appendNodeStats(dst []byte) []byte {
	if t := s.maps.table(); t != nil {
		for _, n := range t.nodes.Nodes {
			key := n.Key()
			dst = text.AppendStat(dst, key+":role", n.Role.String())
			dst = text.AppendStat(dst, key+":state", n.State.String())
			dst = text.AppendStat(dst, key+":partition", strconv.Itoa(n.Partition))
			dst = text.AppendStat(dst, key+":balance", strconv.Itoa(n.Balance))
			dst = text.AppendStat(dst, key+":thread_type", strconv.Itoa(n.ThreadType))
		}
	}
	return append(dst, text.ReplyEnd...)
}
