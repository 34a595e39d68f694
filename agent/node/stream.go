package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/flarekv/flare/agent/options"
	"github.com/flarekv/flare/agent/replication"
	"github.com/flarekv/flare/proto/text"
)

// replicationProto is the version of the stream that this node speaks.
const replicationProto = 1

func (s *Server) newSource() *replication.Source {
	return replication.NewSource(s.db, replication.SourceConfig{
		Self:    s.self,
		Timeout: func() time.Duration { return s.live.Load().ReplicationTimeout },
		Behind: func(ctx context.Context, replica string, epoch, session uint64) error {
			partition, held := s.roles.leads(epoch)
			if !held {
				return replication.ErrNotMaster
			}
			return s.index.behind(ctx, partition, replica, epoch, session)
		},
		CopyBandwidth:   func() int64 { return int64(s.live.Load().ReconstructionBwlimit) << 10 },
		StreamBandwidth: func() int64 { return int64(s.live.Load().CatchUpBwlimit()) << 10 },
		MaxCopies:       func() int { return s.live.Load().ReconstructionMaxCopies },
		Refusals:        &s.refusals,
		Interval:        func() time.Duration { return s.live.Load().RocksDB.WALSyncInterval },
		MinInSync: func() int {
			if o := s.live.Load(); o.ReplicationType == options.Sync {
				return o.ReplicationMinInSync
			}
			return 0
		},
		Changed:       s.changed.fire,
		LeaseExtended: s.leaseExtended,
		Logger:        s.logger,
	})
}

// newCatcher makes what gets a duty's data.
func (s *Server) newCatcher(d duty) catcher {
	switch {
	case d.kind == dutyFill:
		return newFiller(s, d)
	case d.master == "":
		return &orphan{s: s, duty: d}
	}
	return replication.NewFollower(s.db, replication.FollowerConfig{
		Self:      s.self,
		Partition: d.partition,
		Master:    d.master,
		Dial: func(ctx context.Context) (replication.Conn, error) {
			nc, err := s.dial(ctx, d.master)
			if err != nil {
				return nil, err
			}
			return s.following(nc, d.master), nil
		},
		InSync: func(ctx context.Context, epoch, session uint64) error {
			err := s.index.active(ctx, d.partition, epoch, session)
			var refused *text.ErrorReply
			if errors.As(err, &refused) {
				return fmt.Errorf("%w: %w", replication.ErrRefused, err)
			}
			return err
		},
		Promise: func(epoch uint64, ttl time.Duration) bool {
			return s.roles.promise(d.master, d.partition, epoch, ttl)
		},
		Copier:   &slaveCopier{s: s, duty: d},
		GiveUp:   (&surrender{s: s, partition: d.partition}).consider,
		Refusals: &s.refusals,

		GiveUpAfter: func() int { return s.live.Load().RocksDB.ResyncFailureThreshold },
		Resync:      func(ok bool) { s.standDown.resync(d, ok) },
		Logger:      s.logger,
	})
}

// replicate hands a connection over to replication. It returns when the stream
// has ended.
func (s *Server) replicate(c *conn, req *text.Request) {
	rep := req.Replicate
	held, _, _ := s.roles.snapshot()
	if reason, words := refuseReplica(s.maps.table(), held, rep); reason != "" {
		// Who asks a node that is not the master has an older or newer map.
		if reason != reasonNotMaster {
			s.refusals.Count(reason)
			s.limited.warn(s.logger, "replica refused", "reason", reason, "replica", rep.Self, "partition", rep.Partition,
				"history", rep.History, "from", c.nc.RemoteAddr().String())
		}
		c.out = text.AppendServerError(c.out, strings.TrimSuffix(reason+": "+words, ": "))
		return
	}
	c.out = append(c.out, text.ReplyOK...)
	if c.flush() != nil {
		return
	}
	c.streaming.Store(true)
	c.replica.Store(&rep.Self)
	c.nc.SetDeadline(time.Time{})
	err := s.source.Serve(s.ctx, &upgraded{Conn: c.nc, r: c.r}, replication.FollowRequest{
		Self:      rep.Self,
		Partition: rep.Partition,
		History:   rep.History,
		LSN:       rep.Position,
	})
	s.logger.Info("stream to replica ended", "replica", rep.Self, "error", err)
}

// refuseReplica tells why a node is not sent the log, if it is not. A history belongs
// to a partition and is none of its replicas' yet when they come for the first time,
// so what tells the nodes of this cluster from others is the node map.
func refuseReplica(t *table, held tenure, rep text.Replicate) (reason, words string) {
	switch {
	case rep.Proto != replicationProto:
		return "unsupported_version", "this node speaks replication protocol " + strconv.Itoa(replicationProto)
	case !held.held:
		return reasonNotMaster, ""
	case held.partition != rep.Partition:
		return "wrong_partition", "this node is the master of " + strconv.Itoa(held.partition)
	}
	if _, known := t.nodes.Find(rep.Self); !known {
		return "not_in_map", rep.Self + " is no node of this cluster"
	}
	return "", ""
}

// An upgraded connection has left the line protocol. What the request reader
// had read ahead comes first.
type upgraded struct {
	net.Conn
	r *text.Reader
}

func (u *upgraded) Read(p []byte) (int, error) {
	if u.r.Buffered() > 0 {
		return u.r.Read(p)
	}
	return u.Conn.Read(p)
}

// catchUps counts how this node caught up as a replica.
type catchUps struct {
	wal, checkpoint, dump, failed, fallbacks, purged   uint64
	rewinds, rewoundKeys, rewoundBytes, rewindsGivenUp uint64
}

func (c *catchUps) add(s replication.FollowerStatus) {
	c.wal += s.WALCatchUps
	c.checkpoint += s.Checkpoints
	c.dump += s.Dumps
	c.failed += s.FailedAttempts
	c.fallbacks += s.Fallbacks
	c.purged += s.Purged
	c.rewinds += s.Rewinds
	c.rewoundKeys += s.RewoundKeys
	c.rewoundBytes += s.RewoundBytes
	c.rewindsGivenUp += s.RewindsGivenUp
}

// A following connection is one to the master that this node follows.
type following struct {
	net.Conn
	tasks *registry
	task  *task
}

// following registers the connection for as long as it is open.
func (s *Server) following(nc net.Conn, master string) *following {
	describe := func() taskInfo {
		info := taskInfo{kind: taskReconstruction, peer: master, op: opName(text.CmdReplicate), state: taskExecuting}
		if _, catcher, _ := s.roles.snapshot(); catcher != nil {
			if own, head := s.db.Position().LSN, catcher.Status().MasterLSN; own.Index < head.Index {
				info.queue = int(head.Index - own.Index)
			}
		}
		return info
	}
	// The follower connects anew when it is closed.
	return &following{nc, s.tasks, s.tasks.register(s.clock(), describe, func() { nc.Close() })}
}

func (f *following) Close() error {
	f.tasks.unregister(f.task)
	return f.Conn.Close()
}
